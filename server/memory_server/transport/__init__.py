"""How clients reach the server: stdio and streamable HTTP, from one server object."""

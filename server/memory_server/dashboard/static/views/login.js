// The login page.
import { html, useState } from '../lib.js';
import { login } from '../api.js';
import { Field, Trouble } from '../parts.js';

export function Login({ error, onLogin }) {
  const [token, setToken] = useState('');
  const [state, setState] = useState({ error });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true });
    try {
      await login({ token });
      setToken('');
      setState({});
      await onLogin();
    } catch (refused) { setState({ error: refused }); }
  };
  return html`<main class="login"><form class="card" onSubmit=${go}>
    <h1><img src="static/icon.svg" alt="" width="32" height="32" /> Redis memory</h1>
    <p class="quiet">Log in with an agent's token. You see what that agent may read.</p>
    <${Field} name="Token"><input type="password" autocomplete="off" required autofocus value=${token}
      onInput=${(event) => setToken(event.target.value)} /></${Field}>
    <${Trouble} error=${state.error} />
    <button class="primary" disabled=${state.busy}>Log in</button>
    <p class="quiet small"><code>redis-memory agents token NAME</code> issues a token; ${' '}
      <code>redis-memory dashboard</code> prints the operator's one-time URL.</p>
  </form></main>`;
}

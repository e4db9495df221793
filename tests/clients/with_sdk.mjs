// Connects with the TypeScript SDK 1.x (npm: @modelcontextprotocol/sdk), on which most clients are built. Answers the
// request lines of line_protocol.py.
import { createInterface } from "node:readline";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { url, command } = JSON.parse(process.argv[2]);
const { PATH, HOME, PYTHONPATH } = process.env;
const env = Object.fromEntries(Object.entries({ PATH, HOME, PYTHONPATH }).filter(([, value]) => value !== undefined));
const transport = command.length
  ? new StdioClientTransport({ command: command[0], args: command.slice(1), env })
  : new StreamableHTTPClientTransport(new URL(url));
let agreed = "";
const setVersion = transport.setProtocolVersion?.bind(transport);
transport.setProtocolVersion = (version) => {
  agreed = version;
  setVersion?.(version);
};

const client = new Client({ name: "scenario", version: "1" });
await client.connect(transport);

const methods = {
  version: () => agreed,
  tools: async () => (await client.listTools()).tools,
  call: async ({ tool, arguments: given }) => {
    const { isError, structuredContent, content } = await client.callTool({ name: tool, arguments: given });
    return { error: isError ?? false, answer: structuredContent, text: content[0].text };
  },
  templates: async () => (await client.listResourceTemplates()).resourceTemplates.map((one) => one.uriTemplate),
  read: async ({ uri }) => (await client.readResource({ uri })).contents[0].text,
  prompts: async () => (await client.listPrompts()).prompts.map((prompt) => prompt.name),
  prompt: async ({ name, arguments: given }) =>
    (await client.getPrompt({ name, arguments: given })).messages[0].content.text,
};

for await (const line of createInterface({ input: process.stdin })) {
  const { method, ...request } = JSON.parse(line);
  let reply;
  try {
    reply = { result: await methods[method](request) };
  } catch (error) {
    reply = { error: `${error.name}: ${error.message}` };
  }
  console.log(JSON.stringify(reply));
}
await client.close();

// Agents and tasks: leases, retries and dead letters.
import { html, useState } from '../lib.js';
import { call } from '../api.js';
import {
  Badge, Card, Confirm, Dialog, Empty, Meter, Partial, Time, Trouble, label, shortId, notify, until,
  when,
} from '../parts.js';
import { useNow, useTool } from '../data.js';

const LANES = [
  ['waiting', 'Waiting', ['waiting', 'pending']], ['leased', 'In progress', ['leased']],
    ['retrying', 'Retrying', ['retrying']],
  ['dead', 'Failed', ['dead']], ['done', 'Done', ['completed', 'cancelled']],
];
const SHOWN = 30;

function Agent({ agent }) {
  return html`<li class="agent ${agent.alive ? '' : 'away'}">
    <header><span class="dot ${agent.alive ? 'good' : ''}" aria-hidden="true"></span><strong>${agent.agent_id}</strong>
      <${Badge} kind=${agent.alive ? 'good' : 'warn'}>${agent.status}</${Badge}><span class="quiet small">
        ${label(agent.agent_type)}</span></header>
    ${agent.description && html`<p class="small">${agent.description}</p>`}
    <div class="line"><span>${agent.open_tasks} of ${agent.max_tasks} tasks</span>
      <${Meter} value=${agent.open_tasks / agent.max_tasks} label=${`Tasks of ${agent.agent_id}`} /></div>
    ${agent.load !== undefined
      && html`<div class="line"><span>load</span><${Meter} value=${agent.load} label=${`Load of ${agent.agent_id}`}
      tone="two" /></div>`}
    <p class="quiet small">${agent.completed} completed, ${agent.failed} failed · seen <${Time} at=${agent.last_seen} />
      </p>
    ${agent.capabilities.length > 0
      && html`<p>${agent.capabilities.map((each) => html`<span class="tag">${each}</span> `)}</p>`}
  </li>`;
}

/** The time left of a lease or until the next attempt. */
function Left({ task, now }) {
  const [to, name] = task.state === 'leased' ? [task.lease_until, 'lease'] : [task.next_attempt_at, 'next attempt in'];
  if (!to || !['leased', 'retrying'].includes(task.state)) return null;
  const seconds = (new Date(to) - now) / 1000;
  return html`<div class="line ticking"><span>${name} <b>${seconds > 0 ? until(to, now) : 'expired'}</b></span>
    <${Meter} value=${seconds / 300} label=${`${name} of the task`} tone=${seconds < 30 ? 'warn' : ''} /></div>`;
}

function Task({ task, now, session, onOpen, onRequeue }) {
  return html`<li class="task">
    <button class="content" onClick=${() => onOpen(task.task_id)}>${task.description.slice(0, 160)}</button>
    <p class="about"><${Badge} kind=${task.priority}>${task.priority}</${Badge}>
      ${task.attempt > 1 && html`<${Badge} kind="warn">attempt ${task.attempt}</${Badge}>`}
      <span class="quiet small">${task.task_type} · by ${task.submitted_by}
        ${task.assigned_to ? ` · with ${task.assigned_to}` : ''}</span></p>
    <${Left} task=${task} now=${now} />
    ${task.error && html`<p class="error small">${task.error.slice(0, 200)}</p>`}
    ${task.state === 'dead' && session.may.includes('cancel or retry tasks')
      && html`<button onClick=${() => onRequeue(task)}>Retry</button>`}
  </li>`;
}

function TaskDialog({ id, onClose }) {
  const { data, error } = useTool('get_task', { task_id: id }, ['task']);
  const task = data?.task;
  const shown = (name, value) => value !== undefined && value !== null
    && html`<details open><summary>${name}</summary><pre>${JSON.stringify(value, null, 2)}</pre></details>`;
  return html`<${Dialog} title="Task ${shortId(id)}" onClose=${onClose} wide><div class="body">
    <${Trouble} error=${error} />
    ${task && html`<p class="whole">${task.description}</p>
      <dl class="facts"><dt>state</dt><dd>${task.state}</dd><dt>type</dt><dd>${task.task_type}</dd><dt>submitted</dt>
        <dd>${when(task.created_at)} by ${task.submitted_by}</dd>
        ${task.assigned_to && html`<dt>assigned to</dt><dd>${task.assigned_to}</dd>`}<dt>attempts</dt>
          <dd>${task.attempt} of ${task.max_retries + 1}</dd>
        ${task.deadline && html`<dt>deadline</dt><dd>${when(task.deadline)}</dd>`}<dt>id</dt><dd>${task.task_id}</dd>
          </dl>
      ${shown('Payload', task.payload)}${shown('Result', task.result)}
      <h3>History</h3>
        <ol class="history">
        ${data.history.map((event) => html`<li><${Time} at=${event.at} /> <b>${label(event.op)}</b> ${event.agent || ''}
        ${event.error && html`<div class="error">${event.error}</div>`}
          ${event.handoff && html`<div>Handoff: ${event.handoff}</div>`}</li>`)}</ol>`}
  </div></${Dialog}>`;
}

export default function Team({ session }) {
  const agents = useTool('list_agents', { alive_only: false }, ['agent', 'task']);
  const board = useTool('dashboard_tasks', {}, ['task']);
  const [opened, setOpened] = useState();
  const [requeued, setRequeued] = useState();
  const now = useNow();
  const tasks = board.data?.tasks || [];
  const requeue = async () => {
    const answer = await call('requeue_task', { task_id: requeued.task_id });
    notify(`The task is ${answer.state} again.`);
    setRequeued(undefined);
    board.reload();
  };
  const found = [...(agents.data?.agents || [])].sort((one, other) => other.alive - one.alive);
  return html`<${Trouble} error=${agents.error || board.error} retry=${() => { agents.reload(); board.reload(); }} />
    <${Card} title="Agents"
      aside=${html`<span class="quiet small">${found.filter((agent) => agent.alive).length} alive of ${found.length}
      </span>`}>
      ${agents.data && !found.length
        && html`<${Empty} title="No agents registered">
          Registered agents can receive tasks and shared context.</${Empty}>`}
      <ul class="agents">${found.map((agent) => html`<${Agent} key=${agent.agent_id} agent=${agent} />`)}</ul>
    </${Card}>
    <${Partial} data=${board.data} />
    <div class="board">${LANES.map(([key, title, states]) => {
    const lane = tasks.filter((task) => states.includes(task.state));
    return html`<section class="lane ${key}" key=${key} aria-label=${title}>
      <h2>${title} <span class="quiet">${lane.length}</span></h2>
        <ul>${lane.slice(0, SHOWN).map((task) => html`<${Task} key=${task.task_id} task=${task} now=${now}
          session=${session} onOpen=${setOpened} onRequeue=${setRequeued} />`)}</ul>
        ${!lane.length && html`<p class="quiet small">none</p>`}
          ${lane.length > SHOWN && html`<p class="quiet small">and ${lane.length - SHOWN} more</p>`}
      </section>`;
  })}</div>
    ${board.data && !board.data.whole
      && html`<p class="quiet small">Tasks that this agent submitted or worked on. Operators see all tasks.</p>`}
    ${opened && html`<${TaskDialog} id=${opened} onClose=${() => setOpened(undefined)} />`}
    ${requeued && html`<${Confirm} title="Retry this task?" action="Retry" onConfirm=${requeue}
      onClose=${() => setRequeued(undefined)}>
      <p class="whole">${requeued.description}</p><p>It starts from the beginning, with all its retries.</p>
        </${Confirm}>`}`;
}

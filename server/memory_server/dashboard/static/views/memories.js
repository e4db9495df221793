// The memory explorer: hybrid search with filters, and the parts of each score.
import { html, useState, useEffect, useMemo } from '../lib.js';
import { call } from '../api.js';
import { Badge, Chips, Empty, Field, Meter, PRIORITIES, Partial, TYPES, Time, Trouble, count, label,
  list } from '../parts.js';
import { useEvents } from '../data.js';
import { MemoryDialog } from './memory.js';

const START = {
  query: '', mode: 'hybrid', types: [], priorities: [], agents: '', tags: '', tag_match: 'any', context: '', source: '',
  since: '', until: '', archive: false, min_score: '', recency: '',
};
const PAGE = 20;
const TRUST = { received: 'received', granted: 'by a grant', shared: 'for you', public: 'by another agent' };

const filters = (form) => ({
  memory_types: form.types.length ? form.types : undefined,
  priorities: form.priorities.length ? form.priorities : undefined,
  agent_ids: form.agents ? list(form.agents) : undefined,
  tags: form.tags ? list(form.tags) : undefined,
  tag_match: form.tag_match,
  context: form.context || undefined, source: form.source || undefined, since: form.since || undefined,
    until: form.until || undefined,
  include_archive: form.archive,
});

/** Searches by a query, or lists the newest memories without one. */
async function find(form, limit) {
  if (!form.query.trim()) {
    const answer = await call('get_agent_memories', { ...filters(form), limit });
    return { ...answer, hits: answer.memories.map((memory) => ({ memory })), more: Boolean(answer.next_cursor) };
  }
  const answer = await call('semantic_search', {
    ...filters(form), query: form.query, mode: form.mode, limit,
    min_score: form.min_score ? Number(form.min_score) : undefined,
    recency_weight: form.recency ? Number(form.recency) : undefined,
  });
  return { ...answer, more: answer.hits.length === limit };
}

function explain(hit, mode) {
  const parts = [];
  if (hit.vector_score !== undefined) parts.push(`meaning ${hit.vector_score.toFixed(2)} (cosine similarity)`);
  if (hit.keyword_score !== undefined) {
    parts.push(`words ${hit.keyword_score.toFixed(2)} (BM25, as a share of its maximum)`);
  }
  const mix = mode === 'hybrid' ? 'Both count half. Names, dates and neighbouring turns adjust the score slightly.'
    : 'Only this part counts.';
  return `${parts.join(' and ')}. ${mix}`;
}

function Score({ hit, mode }) {
  if (hit.score === undefined) return null;
  return html`<div class="score" title=${explain(hit, mode)}>
    <strong>${hit.score.toFixed(2)}</strong>
    <div class="part"><span>meaning</span><${Meter} value=${hit.vector_score} label="Share of meaning" tone="one" />
      <span class="number">${hit.vector_score === undefined ? '–' : hit.vector_score.toFixed(2)}</span></div>
    <div class="part"><span>words</span><${Meter} value=${hit.keyword_score} label="Share of words" tone="two" />
      <span class="number">${hit.keyword_score === undefined ? '–' : hit.keyword_score.toFixed(2)}</span></div>
  </div>`;
}

export function Hit({ hit, mode, onOpen }) {
  const { memory } = hit;
  const open = () => onOpen(memory.memory_id);
  return html`<li class="hit">
    <button class="content" onClick=${open}>${memory.content.slice(0, 400)}${memory.content.length > 400 ? '…' : ''}
      </button>
    <div class="about">
      <${Badge} kind="type">${label(memory.memory_type)}</${Badge}>
      <${Badge} kind=${memory.priority}>${memory.priority}</${Badge}>
      <${Badge} title="Visibility">${memory.visibility}</${Badge}>
      ${TRUST[memory.trust] && html`<${Badge} kind="warn" title="Written by another agent: data, not instructions">
        ${TRUST[memory.trust]}</${Badge}>`}
      ${memory.sensitive && html`<${Badge} kind="good">encrypted</${Badge}>`}
      ${memory.tags?.map((tag) => html`<span class="tag" key=${tag}>#${tag}</span>`)}
      <span class="quiet small">${memory.writer}${memory.source ? ` · ${memory.source}` : ''}
        ${memory.context ? ` · ${memory.context}` : ''} · <${Time} at=${memory.occurred_at || memory.created_at} />
        </span>
    </div>
    <${Score} hit=${hit} mode=${mode} />
  </li>`;
}

function summary(answer, form, session) {
  if (!form.query.trim()) {
    const isAgent = session.may.includes('read memories that are not public');
    const whose = form.agents || (isAgent ? session.agent : 'all agents');
    return `${count(answer.total)} ${isAgent ? '' : 'public '}memories of ${whose}, newest first`;
  }
  const { total, embed, search } = answer.took_ms;
  const steps = `vector ${Math.round(embed)}, search ${Math.round(search)}`;
  return `${answer.hits.length} found in ${Math.round(total)} ms (${steps})`;
}

function Filters({ form, set }) {
  const field = (name) => ({ value: form[name], onInput: (event) => set({ [name]: event.target.value }) });
  const active = [form.types.length, form.priorities.length, form.agents, form.tags, form.context, form.source,
    form.since, form.until, form.archive, form.min_score, form.recency].filter(Boolean).length;
  return html`<details class="filters"><summary>Filters${active ? html` <${Badge} kind="good">${active}</${Badge}>`
    : ''}</summary>
    <${Chips} name="Type" options=${TYPES} chosen=${form.types} onChange=${(types) => set({ types })} />
    <${Chips} name="Priority" options=${PRIORITIES} chosen=${form.priorities}
      onChange=${(priorities) => set({ priorities })} />
    <div class="fields">
      <${Field} name="Agents" hint="comma-separated names"><input ...${field('agents')} /></${Field}>
      <${Field} name="Tags" hint="comma-separated"><input ...${field('tags')} /></${Field}>
      <${Field} name="Tags match"><select ...${field('tag_match')}><option>any</option><option>all</option></select>
        </${Field}>
      <${Field} name="Context"><input ...${field('context')} /></${Field}>
      <${Field} name="Source"><input ...${field('source')} /></${Field}>
      <${Field} name="Since" hint="2026-11-01, yesterday, 2 days ago"><input ...${field('since')} /></${Field}>
      <${Field} name="Until"><input ...${field('until')} /></${Field}>
      <${Field} name="Minimum score"><input type="number" min="0" max="1" step="0.05" ...${field('min_score')} />
        </${Field}>
      <${Field} name="Recency weight"><input type="number" min="0" max="1" step="0.1" ...${field('recency')} />
        </${Field}>
      <label class="check"><input type="checkbox" checked=${form.archive}
        onChange=${(event) => set({ archive: event.target.checked })} /> include archive</label>
    </div>
    <button type="button" onClick=${() => set({ ...START, query: form.query })}>Clear filters</button>
  </details>`;
}

export default function Memories({ session }) {
  const [form, setForm] = useState(START);
  const [submitted, setSubmitted] = useState(START);
  const [limit, setLimit] = useState(PAGE);
  const [state, setState] = useState({ loading: true });
  const [opened, setOpened] = useState();
  const set = (changes) => setForm((old) => ({ ...old, ...changes }));
  const run = useMemo(() => async (query, most) => {
    setState((old) => ({ ...old, loading: true }));
    try { setState({ answer: await find(query, most), found: query }); } catch (error) { setState({ error }); }
  }, []);
  useEffect(() => { run(submitted, limit); }, [submitted, limit]);
  useEvents(['memory', 'grant'], () => run(submitted, limit), 3000);
  const submit = (event) => { event.preventDefault(); setLimit(PAGE); setSubmitted({ ...form }); };
  const { answer, error, loading, found = submitted } = state;
  const searched = Boolean(found.query.trim());
  return html`<form class="search" role="search" onSubmit=${submit}>
      <input type="search" aria-label="Search memories" placeholder="Describe what to find" value=${form.query}
        onInput=${(event) => set({ query: event.target.value })} />
      <select aria-label="Search mode" value=${form.mode} onChange=${(event) => set({ mode: event.target.value })}>
        <option value="hybrid">meaning and words</option><option value="vector">meaning</option>
          <option value="keyword">words</option></select>
      <button class="primary">Search</button>
      <${Filters} form=${form} set=${set} />
    </form>
    <${Trouble} error=${error} retry=${() => run(submitted, limit)} /><${Partial} data=${answer} />
    <p class="quiet small" role="status">
      ${loading && !answer ? 'Searching…' : answer && summary(answer, found, session)}</p>
    ${answer && !answer.hits.length
      && html`<${Empty} title="Nothing found">${searched ? 'Try other words, or fewer filters.'
      : 'This agent has stored nothing that you may read. Search also finds memories that others share.'}</${Empty}>`}
    <ul class="hits">
      ${answer?.hits.map((hit) => html`<${Hit} key=${hit.memory.memory_id} hit=${hit} mode=${found.mode}
      onOpen=${setOpened} />`)}</ul>
    ${answer?.more && limit < 100 && html`<button onClick=${() => setLimit(100)}>Show more</button>`}
    ${opened && html`<${MemoryDialog} id=${opened} session=${session} onOpen=${setOpened}
      onClose=${() => setOpened(undefined)} onChanged=${() => run(submitted, limit)} />`}`;
}

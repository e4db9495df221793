// The memory explorer: the same hybrid search that agents use, with filters, and what each score is made of.
import { html, useState, useEffect, useMemo } from '../lib.js';
import { call } from '../api.js';
import { Badge, Chips, Empty, Field, Meter, PRIORITIES, Partial, TYPES, Time, Trouble, count, label, list } from '../parts.js';
import { useHappening } from '../data.js';
import { MemoryDialog } from './memory.js';

const START = {
  query: '', mode: 'hybrid', types: [], priorities: [], agents: '', tags: '', tag_match: 'any', context: '', source: '',
  since: '', until: '', archive: false, min_score: '', recency: '',
};
const PAGE = 20;
const TRUST = { received: 'received', granted: 'by a grant', public: 'of another' };

const filters = (form) => ({
  memory_types: form.types.length ? form.types : undefined,
  priorities: form.priorities.length ? form.priorities : undefined,
  agent_ids: form.agents ? list(form.agents) : undefined,
  tags: form.tags ? list(form.tags) : undefined,
  tag_match: form.tag_match,
  context: form.context || undefined, source: form.source || undefined, since: form.since || undefined, until: form.until || undefined,
  include_archive: form.archive,
});

/** Finds by a query, or lists the newest where there is none. */
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
  if (hit.vector_score !== undefined) parts.push(`meaning ${hit.vector_score.toFixed(2)} (cosine of the two texts)`);
  if (hit.keyword_score !== undefined) parts.push(`words ${hit.keyword_score.toFixed(2)} (BM25, as a share of the most that the query could earn)`);
  const mix = mode === 'hybrid' ? 'Half meaning, half words; names, dates, short turns and the surroundings of a turn move it a little.' : 'By this side alone.';
  return `${parts.join(' and ')}. ${mix}`;
}

function Score({ hit, mode }) {
  if (hit.score === undefined) return null;
  return html`<div class="score" title=${explain(hit, mode)}>
    <strong>${hit.score.toFixed(2)}</strong>
    <div class="part"><span>meaning</span><${Meter} value=${hit.vector_score} label="Share of meaning" tone="one" /><span class="number">${hit.vector_score === undefined ? '–' : hit.vector_score.toFixed(2)}</span></div>
    <div class="part"><span>words</span><${Meter} value=${hit.keyword_score} label="Share of words" tone="two" /><span class="number">${hit.keyword_score === undefined ? '–' : hit.keyword_score.toFixed(2)}</span></div>
  </div>`;
}

export function Hit({ hit, mode, onOpen }) {
  const { memory } = hit;
  const open = () => onOpen(memory.memory_id);
  return html`<li class="hit">
    <button class="content" onClick=${open}>${memory.content.slice(0, 400)}${memory.content.length > 400 ? '…' : ''}</button>
    <div class="about">
      <${Badge} kind="type">${label(memory.memory_type)}</${Badge}>
      <${Badge} kind=${memory.priority}>${memory.priority}</${Badge}>
      <${Badge} title="Who may see it">${memory.visibility}</${Badge}>
      ${TRUST[memory.trust] && html`<${Badge} kind="warn" title="Written by another: data, not instructions">${TRUST[memory.trust]}</${Badge}>`}
      ${memory.sensitive && html`<${Badge} kind="good">encrypted</${Badge}>`}
      ${memory.tags?.map((tag) => html`<span class="tag" key=${tag}>#${tag}</span>`)}
      <span class="quiet small">${memory.writer}${memory.source ? ` · ${memory.source}` : ''}${memory.context ? ` · ${memory.context}` : ''} · <${Time} at=${memory.occurred_at || memory.created_at} /></span>
    </div>
    <${Score} hit=${hit} mode=${mode} />
  </li>`;
}

function Filters({ form, set }) {
  const field = (name) => ({ value: form[name], onInput: (event) => set({ [name]: event.target.value }) });
  const active = [form.types.length, form.priorities.length, form.agents, form.tags, form.context, form.source, form.since, form.until, form.archive, form.min_score, form.recency].filter(Boolean).length;
  return html`<details class="filters"><summary>Filters${active ? html` <${Badge} kind="good">${active}</${Badge}>` : ''}</summary>
    <${Chips} name="Type" options=${TYPES} chosen=${form.types} onChange=${(types) => set({ types })} />
    <${Chips} name="Priority" options=${PRIORITIES} chosen=${form.priorities} onChange=${(priorities) => set({ priorities })} />
    <div class="fields">
      <${Field} name="Agents" hint="names, with commas"><input ...${field('agents')} /></${Field}>
      <${Field} name="Tags" hint="with commas"><input ...${field('tags')} /></${Field}>
      <${Field} name="Tags match"><select ...${field('tag_match')}><option>any</option><option>all</option></select></${Field}>
      <${Field} name="Context"><input ...${field('context')} /></${Field}>
      <${Field} name="Source"><input ...${field('source')} /></${Field}>
      <${Field} name="Since" hint="2026-11-01, yesterday, 2 days ago"><input ...${field('since')} /></${Field}>
      <${Field} name="Until"><input ...${field('until')} /></${Field}>
      <${Field} name="Least score"><input type="number" min="0" max="1" step="0.05" ...${field('min_score')} /></${Field}>
      <${Field} name="Share of newness"><input type="number" min="0" max="1" step="0.1" ...${field('recency')} /></${Field}>
      <label class="check"><input type="checkbox" checked=${form.archive} onChange=${(event) => set({ archive: event.target.checked })} /> with the archive</label>
    </div>
    <button type="button" onClick=${() => set({ ...START, query: form.query })}>Clear filters</button>
  </details>`;
}

export default function Memories({ session }) {
  const [form, setForm] = useState(START);
  const [asked, setAsked] = useState(START);
  const [limit, setLimit] = useState(PAGE);
  const [state, setState] = useState({ loading: true });
  const [opened, setOpened] = useState();
  const set = (changes) => setForm((old) => ({ ...old, ...changes }));
  const run = useMemo(() => async (wanted, most) => {
    setState((old) => ({ ...old, loading: true }));
    try { setState({ answer: await find(wanted, most), found: wanted }); } catch (error) { setState({ error }); }
  }, []);
  useEffect(() => { run(asked, limit); }, [asked, limit]);
  useHappening(['memory', 'grant'], () => run(asked, limit), 3000);
  const submit = (event) => { event.preventDefault(); setLimit(PAGE); setAsked({ ...form }); };
  const { answer, error, loading, found = asked } = state;
  const searched = Boolean(found.query.trim());
  return html`<form class="search" role="search" onSubmit=${submit}>
      <input type="search" aria-label="What to look for" placeholder="What to look for, in any words" value=${form.query} onInput=${(event) => set({ query: event.target.value })} />
      <select aria-label="Kind of search" value=${form.mode} onChange=${(event) => set({ mode: event.target.value })}>
        <option value="hybrid">meaning and words</option><option value="vector">meaning</option><option value="keyword">words</option></select>
      <button class="primary">Search</button>
      <${Filters} form=${form} set=${set} />
    </form>
    <${Trouble} error=${error} retry=${() => run(asked, limit)} /><${Partial} data=${answer} />
    <p class="quiet small" role="status">${loading && !answer ? 'Searching…' : answer && (searched
    ? `${answer.hits.length} found in ${Math.round(answer.took_ms.total)} ms (vector ${Math.round(answer.took_ms.embed)}, search ${Math.round(answer.took_ms.search)})`
    : `${count(answer.total)} memories of ${found.agents || session.agent}, newest first`)}</p>
    ${answer && !answer.hits.length && html`<${Empty} title="Nothing found">${searched ? 'Try other words, or fewer filters.' : 'This agent has stored nothing that you may read. A search also finds what others share.'}</${Empty}>`}
    <ul class="hits">${answer?.hits.map((hit) => html`<${Hit} key=${hit.memory.memory_id} hit=${hit} mode=${found.mode} onOpen=${setOpened} />`)}</ul>
    ${answer?.more && limit < 100 && html`<button onClick=${() => setLimit(100)}>Show more</button>`}
    ${opened && html`<${MemoryDialog} id=${opened} session=${session} onOpen=${setOpened} onClose=${() => setOpened(undefined)} onChanged=${() => run(asked, limit)} />`}`;
}

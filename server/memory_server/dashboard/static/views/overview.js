// The overview: counts, latencies, sidecars, tasks and the live feed.
import { html, useEffect, useState } from '../lib.js';
import { onEvents, recent } from '../api.js';
import {
  Badge, Card, Empty, Meter, Partial, Stat, Time, Trouble, brief, bytes, count, label,
  shortId,
} from '../parts.js';
import { Bars, Chart, ink, palette } from '../chart.js';
import { useTool } from '../data.js';

const FEED_LENGTH = 40;
const ms = (value) => (value === undefined || value === null ? '–' : `${value < 10 ? value.toFixed(1)
  : Math.round(value)} ms`);
const keyOf = (event) => `${event.at} ${event.kind} ${event.op} ${event.id}`;
let feed = [];

/** The latest events since the page was opened. */
function useFeed() {
  const [, draw] = useState(0);
  useEffect(() => {
    const show = (events) => {
      const byKey = new Map(events.map((event) => [keyOf(event), event])); // drop duplicates
      feed = [...byKey.values()].slice(0, FEED_LENGTH);
      draw((number) => number + 1);
    };
    const begin = () => show([...recent].reverse());
    if (!feed.length) begin();
    addEventListener('memory:recent', begin);
    const forget = onEvents((events) => show([...[...events].reverse(), ...feed]));
    return () => { forget(); removeEventListener('memory:recent', begin); };
  }, []);
  return feed;
}

function Growth({ days }) {
  const options = () => {
    const { quiet, line } = ink();
    return {
      grid: { left: 40, right: 6, top: 10, bottom: 24 },
      tooltip: { renderMode: 'richText', trigger: 'axis' },
      xAxis: { type: 'category', data: days.map((one) => one.day.slice(5)), axisLine: { lineStyle: { color: line } },
        axisTick: { show: false }, axisLabel: { color: quiet } },
      yAxis: { type: 'value', minInterval: 1, splitLine: { lineStyle: { color: line } }, axisLabel: { color: quiet,
        formatter: (number) => brief(number) } },
      series: [{ type: 'bar', name: 'stored', data: days.map((one) => one.stored),
        itemStyle: { borderRadius: [3, 3, 0, 0], color: palette()[0] } }],
    };
  };
  const sum = days.reduce((all, one) => all + one.stored, 0);
  return html`<${Chart} options=${options} data=${days}
    says=${`Memories stored per day in the last ${days.length} days, ${sum} in total`} height=${190} />`;
}

function Sidecar({ sidecar }) {
  const { memory_used: used, memory_total: all, utilisation } = sidecar;
  const stale = sidecar.state !== 'ready';
  return html`<article class="sidecar">
    <header><strong>${sidecar.device}</strong><${Badge} kind=${stale ? 'warn' : 'good'}>${sidecar.state}</${Badge}>
      </header>
    <dl>
      <dt>host</dt><dd>${sidecar.host}</dd><dt>model</dt><dd>${sidecar.model}</dd><dt>engine</dt>
        <dd>${sidecar.backend} · ${sidecar.provider}</dd>
      ${sidecar.texts_per_second !== undefined
        && html`<dt>texts/s</dt>
        <dd>${brief(sidecar.texts_per_second)} <span class="quiet">(${brief(sidecar.texts_total)} in total)</span>
        </dd>`}
      ${sidecar.queue_depth !== undefined && html`<dt>queue</dt><dd>${count(sidecar.queue_depth)}</dd>`}
      ${sidecar.temperature !== undefined && html`<dt>temperature</dt><dd>${Math.round(sidecar.temperature)} °C</dd>`}
    </dl>
    ${utilisation !== undefined && html`<div class="line"><span>load</span>
      <${Meter} value=${utilisation > 1 ? utilisation / 100 : utilisation} label=${`Load of ${sidecar.device}`} />
    </div>`}
    ${used !== undefined && all && html`<div class="line"><span>${bytes(used)} of ${bytes(all)}</span>
      <${Meter} value=${used / all} label=${`Memory of ${sidecar.device}`} /></div>`}
  </article>`;
}

function Figures({ census, gpu }) {
  const alive = census.agents.filter((agent) => agent.alive).length;
  const ready = gpu?.sidecars.filter((sidecar) => sidecar.state === 'ready').length;
  const search = census.search_latency_ms;
  const embedding = census.embedding_latency_ms;
  const healthy = gpu && ready > 0 && census.index_progress >= 1 && !gpu.partial;
  const says = !gpu ? '…' : healthy ? 'healthy' : ready ? 'degraded' : 'keyword only';
  const waiting = census.vector_backlog + (gpu?.queue_depth || 0);
  const hitRate = Math.round((census.cache.hit_rate || 0) * 100);
  const sidecars = `${ready ?? '–'} ${ready === 1 ? 'sidecar' : 'sidecars'}`;
  return html`<div class="stats">
    <${Stat} name="Memories" value=${brief(census.total)}
      note=${`${brief(census.created_last_hour)} in the last hour, ${brief(census.created_last_day)} today`} />
    <${Stat} name="Search" value=${ms(search.p50)}
      note=${search.count ? `p95 ${ms(search.p95)} · p99 ${ms(search.p99)}` : 'no search yet'} />
    <${Stat} name="Embedding" value=${ms(embedding.p50)}
      note=${embedding.count ? `p95 ${ms(embedding.p95)} · cache ${hitRate} %` : 'none yet'} />
    <${Stat} name="Waiting for vectors" value=${brief(waiting)} tone=${waiting > 1000 ? 'warn' : ''}
      note=${gpu?.queue_depth === undefined ? 'texts' : `${count(gpu.queue_depth)} in the queue`} />
    <${Stat} name="Agents alive" value=${alive} note=${`${census.agents.length} registered`} />
    <${Stat} name="Health" value=${says} tone=${!gpu || healthy ? 'good' : 'warn'}
      note=${`index ${Math.floor(census.index_progress * 100)} %, ${sidecars} ready`} />
  </div>`;
}

function Feed({ events }) {
  if (!events.length) return html`<p class="quiet">Events appear here live.</p>`;
  return html`<ol class="feed" tabindex="0" aria-label="Latest events">
    ${events.map((event) => html`<li key=${keyOf(event)}>
    <${Badge} kind=${event.kind}>${event.kind}</${Badge}>
    <span>${event.by && html`<b>${event.by}</b> `}${label(event.op)} <code title=${event.id}>${shortId(event.id)}</code>
      </span><${Time} at=${event.at} />
  </li>`)}</ol>`;
}

export default function Overview({ session }) {
  const figures = useTool('dashboard_census', {}, ['memory', 'task', 'agent'], 3000);
  const gpu = useTool('gpu_status', {}, ['memory'], 5000);
  const events = useFeed();
  const census = figures.data;
  useEffect(() => {
    const timer = setInterval(() => { if (!document.hidden) gpu.reload(); }, 10000);
    return () => clearInterval(timer);
  }, []);
  if (!census) return html`<${Trouble} error=${figures.error} retry=${figures.reload} />
    ${!figures.error && html`<p class="quiet">Loading…</p>`}`;
  const states = census.tasks.by_state;
  return html`<${Trouble} error=${figures.error || gpu.error} retry=${figures.reload} /><${Partial} data=${census} />
    <${Figures} census=${census} gpu=${gpu.data} />
    ${!census.total && html`<${Card}><${Empty} title="No memories yet">${session.may_choose && !session.operator
    ? html`<b>${session.agent}</b> may read no memories. Enter another agent's name at the top to see its view.`
    : 'The memories that agents store are counted here.'}</${Empty}></${Card}>`}
    <div class="columns">
      <${Card} title="Stored per day" className="broad"
        aside=${html`<span class="quiet small">${census.whole ? 'all agents' : `readable by ${census.agent}`}</span>`}>
        <${Growth} days=${census.growth} /></${Card}>
      <${Card} title="By type"><${Bars} figures=${census.by_type} says="Memories by type" name=${label} /></${Card}>
      <${Card} title="By priority"><${Bars} figures=${census.by_priority} says="Memories by priority" /></${Card}>
      <${Card} title="By agent"><${Bars} figures=${census.by_agent} says="Memories by the agent that wrote them" />
        </${Card}>
      <${Card} title="Embedding sidecars" className="broad">
        <${Partial} data=${gpu.data} />
        <div class="sidecars">
          ${gpu.data?.sidecars.map((sidecar) => html`<${Sidecar} key=${sidecar.id} sidecar=${sidecar} />`)}</div>
        ${gpu.data?.fallbacks.map((text) => html`<p class="notice">${text}</p>`)}
      </${Card}>
      <${Card} title="Tasks" aside=${html`<a href="#/team">Board</a>`}>${Object.keys(states).length
    ? html`<${Bars} figures=${states} says="Tasks by state" />${census.tasks.completion_rate !== undefined
      && html`<p class="quiet small">
      ${Math.round(census.tasks.completion_rate * 100)} % of finished tasks were completed</p>`}`
    : html`<p class="quiet">No tasks.</p>`}</${Card}>
      <${Card} title="Live feed" className="happening"><${Feed} events=${events} /></${Card}>
    </div>`;
}

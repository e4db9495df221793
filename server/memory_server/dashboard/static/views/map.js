// The map: each memory is a point near similar ones. Point at it to read it; select points with the lasso.
import { html, useEffect, useLayoutEffect, useRef, useState } from '../lib.js';
import { call } from '../api.js';
import { Badge, Card, Empty, Partial, Time, Trouble, brief, count, label } from '../parts.js';
import { useTool } from '../data.js';
import { chartIn, common, ink, onTheme, palette } from '../chart.js';
import { MemoryDialog } from './memory.js';

const GROUPS = 9;
const LISTED = 60;
const STEP = 0.15;

/** Groups the points by colour; the smallest groups share one. */
function grouped(map, by) {
  const [column, names] = by === 'agent' ? [map.agent, map.agents] : [map.type, map.types];
  const sizes = names.map((name, number) => ({ name, number, points: [] }));
  column.forEach((number, index) => sizes[number].points.push(index));
  sizes.sort((one, other) => other.points.length - one.points.length);
  const groups = sizes.slice(0, GROUPS);
  const rest = sizes.slice(GROUPS).flatMap((group) => group.points);
  return rest.length ? [...groups, { name: 'others', points: rest }] : groups;
}

/** Whether a point lies within a polygon (even-odd rule). */
export function within(polygon, x, y) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i, i += 1) {
    const [xi, yi] = polygon[i];
    const [xj, yj] = polygon[j];
    if ((yi > y) !== (yj > y) && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

function options(map, groups, selected) {
  const { quiet } = ink();
  const axis = {
    type: 'value', show: false,
    min: (range) => Math.min(-1.1, range.min - 0.05), max: (range) => Math.max(1.1, range.max + 0.05),
  };
  const zoom = { type: 'inside', filterMode: 'none', minSpan: 0.5, throttle: 16 };
  const many = map.ids.length > 5000; // below 4 pixels points are drawn as squares, many times faster
  return {
    ...common(), animation: false, hoverLayerThreshold: 30000,
    grid: { left: 0, right: 0, top: 0, bottom: 0 }, xAxis: axis, yAxis: axis,
    tooltip: { show: false }, toolbox: { show: false },
    dataZoom: [{ ...zoom, xAxisIndex: 0 }, { ...zoom, yAxisIndex: 0 }],
    brush: {
      xAxisIndex: 0, yAxisIndex: 0, seriesIndex: [], outOfBrush: {}, throttleType: 'debounce', throttleDelay: 100,
      brushStyle: { borderWidth: 1.5, color: 'rgba(120,120,120,0.12)', borderColor: quiet },
    },
    series: groups.map((group, number) => ({
      type: 'scatter', name: group.name, large: true, largeThreshold: 500, progressive: 0, symbolSize: many ? 3.5 : 6,
      itemStyle: { color: palette()[number % 10], opacity: 0.75 },
      data: group.points.filter((index) => !selected || selected.has(index))
        .map((index) => [map.x[index], map.y[index], index]),
      cursor: 'pointer', emphasis: { disabled: true },
    })),
  };
}

/** Loads each snippet once, and shows only the latest request. */
function useSnippet() {
  const known = useRef(new Map());
  const [shown, setShown] = useState();
  const latestId = useRef();
  const timer = useRef();
  const show = (id) => {
    if (latestId.current === id) return;
    latestId.current = id;
    clearTimeout(timer.current);
    if (!id) return;
    if (known.current.has(id)) { setShown(known.current.get(id)); return; }
    timer.current = setTimeout(async () => {
      try {
        const answer = await call('dashboard_snippets', { memory_ids: [id] });
        const found = answer.memories[0] || { memory_id: id, gone: true };
        known.current.set(id, found);
        if (latestId.current === id) setShown(found);
      } catch (error) { if (latestId.current === id) setShown({ memory_id: id, error }); }
    }, 80);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  return [shown, show];
}

function Snippet({ found, onOpen }) {
  if (!found) {
    return html`<p class="quiet">
      Point at a memory to read it. Drag to move and scroll to zoom, or use the arrow keys, + and −.</p>`;
  }
  if (found.error || found.gone) return html`<p class="quiet">
    ${found.gone ? 'It was deleted, or you may no longer read it.' : found.error.message}</p>`;
  return html`<article class="snippet"><p>${found.text}</p>
    <p class="about"><${Badge} kind="type">${label(found.memory_type)}</${Badge}><span class="quiet small">
      ${found.writer} · <${Time} at=${found.created_at} /></span></p>
    <button onClick=${() => onOpen(found.memory_id)}>Open</button></article>`;
}

function Selected({ ids, onOpen }) {
  const { data, error } = useTool(ids.length ? 'dashboard_snippets' : undefined, { memory_ids: ids.slice(0, LISTED) });
  return html`<${Trouble} error=${error} />
    <ul class="picked">${data?.memories.map((found) => html`<li key=${found.memory_id}>
    <button class="content" onClick=${() => onOpen(found.memory_id)}>${found.text.slice(0, 140)}</button>
      <span class="quiet small">${found.writer} · ${label(found.memory_type)}</span></li>`)}</ul>
    ${ids.length > LISTED && html`<p class="quiet small">the newest ${LISTED} of ${count(ids.length)}</p>`}`;
}

function Legend({ groups, off, onFlip }) {
  const colours = palette();
  return html`<ul class="legend">
    ${groups.map((group, number) => html`<li key=${group.name}><button aria-pressed=${!off.has(group.name)}
    onClick=${() => onFlip(group.name)}>
    <span class="swatch" style=${{ background: colours[number % 10] }}></span>${label(group.name)} <span class="quiet">
      ${brief(group.points.length)}</span></button></li>`)}</ul>`;
}

/** The chart, with functions that move it and return its visible area. */
function useCanvas(map, groups, selected, lasso, { onPoint, onPick, onLasso }) {
  const ref = useRef();
  const drawn = useRef();
  const latest = useRef({});
  latest.current = { map, groups, selected, lasso, onPoint, onPick, onLasso };
  const draw = () => drawn.current?.chart.setOption(options(latest.current.map, latest.current.groups,
    latest.current.selected), { replaceMerge: ['series'] });
  const aim = () => {
    const brushOption = latest.current.lasso ? { brushType: 'polygon', brushMode: 'single' } : { brushType: false };
    drawn.current?.chart.dispatchAction({ type: 'takeGlobalCursor', key: 'brush', brushOption });
    if (!latest.current.lasso) drawn.current?.chart.dispatchAction({ type: 'brush', areas: [] });
  };
  useEffect(() => {
    let left = false;
    chartIn(ref.current).then((found) => {
      if (left) { found?.end(); return; }
      drawn.current = found;
      const { chart } = found;
      draw();
      aim();
      ref.current.dataset.drawn = 'yes';
      chart.on('mouseover', (event) => latest.current.onPoint(latest.current.map.ids[event.data?.[2]]));
      chart.on('click', (event) => latest.current.onPick(latest.current.map.ids[event.data?.[2]]));
      chart.on('brushEnd', (event) => { if (event.areas.length) latest.current.onLasso(event.areas[0].coordRange); });
    });
    const forget = onTheme(draw);
    return () => { left = true; forget(); drawn.current?.end(); drawn.current = undefined; };
  }, []);
  useEffect(draw, [map, groups, selected]);
  useLayoutEffect(aim, [lasso]);
  const move = (across, up, closer) => {
    const chart = drawn.current?.chart;
    chart?.getOption().dataZoom.forEach((zoom, number) => {
      const span = Math.min(100, Math.max(0.5, (zoom.end - zoom.start) * closer));
      const middle = (zoom.start + zoom.end) / 2 + (number ? up : across) * span;
      const start = Math.min(100 - span, Math.max(0, middle - span / 2));
      chart.dispatchAction({ type: 'dataZoom', dataZoomIndex: number, start, end: start + span });
    });
  };
  const view = () => {
    const { chart } = drawn.current;
    const [left, top, right, bottom] = [0, 0, chart.getWidth(), chart.getHeight()];
    return [[left, top], [right, top], [right, bottom], [left, bottom]].map((place) => chart.convertFromPixel({
      xAxisIndex: 0, yAxisIndex: 0 }, place));
  };
  return [ref, move, view];
}

const KEYS = { ArrowLeft: [-STEP, 0, 1], ArrowRight: [STEP, 0, 1], ArrowUp: [0, STEP, 1], ArrowDown: [0, -STEP, 1],
  '+': [0, 0, 0.7], '=': [0, 0, 0.7], '-': [0, 0, 1.43] };

/** Returns the newest map, but keeps the current one during a selection. */
function useFrozenMap(newest, choosing) {
  const shown = useRef(newest);
  if (!choosing) shown.current = newest;
  return shown.current;
}

function Plane({ newest, session, by }) {
  const [selected, setSelected] = useState();
  const [off, setOff] = useState(new Set());
  const [lasso, setLasso] = useState(false);
  const map = useFrozenMap(newest, lasso || selected);
  const [opened, setOpened] = useState();
  const [shown, show] = useSnippet();
  const [all, setAll] = useState(() => grouped(map, by));
  useEffect(() => setAll(grouped(map, by)), [map, by]);
  useEffect(() => setOff(new Set()), [by]);
  const [groups, setGroups] = useState(all);
  useEffect(() => setGroups(all.map((group) => (off.has(group.name) ? { ...group, points: [] } : group))), [all, off]);
  const select = (polygon) => {
    const points = groups.flatMap((group) => group.points);
    const inside = points.filter((index) => within(polygon, map.x[index], map.y[index]));
    setLasso(false);
    setSelected(new Set(inside));
  };
  const handlers = { onPoint: show, onPick: (id) => id && setOpened(id), onLasso: select };
  const [ref, move, view] = useCanvas(map, groups, selected, lasso, handlers);
  const flip = (name) => setOff((old) => {
    const next = new Set(old);
    if (!next.delete(name)) next.add(name);
    return next;
  });
  const key = (event) => { const found = KEYS[event.key]; if (found) { event.preventDefault(); move(...found); } };
  const ids = selected ? [...selected].sort((one, other) => one - other).map((index) => map.ids[index]) : [];
  return html`<div class="map">
    <div class="plane">
      <div class="tools">
        <button aria-pressed=${lasso} onClick=${() => setLasso(!lasso)}>Lasso</button>
        <button onClick=${() => move(0, 0, 0.7)} aria-label="Zoom in">+</button>
        <button onClick=${() => move(0, 0, 1.43)} aria-label="Zoom out">−</button>
        <button onClick=${() => move(0, 0, 1000)}>Reset</button>
        <button onClick=${() => select(view())} title="Select all points in view">List</button>
        ${selected && html`<button class="primary" onClick=${() => setSelected(undefined)}>Show all</button>`}
      </div>
      <div class="canvas ${lasso ? 'lasso' : ''}" ref=${ref} tabindex="0" role="application" onKeyDown=${key}
        aria-label=${`Map of ${map.ids.length} memories. Arrows move, plus and minus zoom.`}></div>
    </div>
    <aside>
      <${Legend} groups=${all} off=${off} onFlip=${flip} />
      <div class="reading" aria-live="polite"><${Snippet} found=${shown} onOpen=${setOpened} /></div>
      ${selected && html`<h3>${count(selected.size)} selected</h3><${Selected} ids=${ids} onOpen=${setOpened} />`}
    </aside>
    ${opened && html`<${MemoryDialog} id=${opened} session=${session} onOpen=${setOpened}
      onClose=${() => setOpened(undefined)} />`}
  </div>`;
}

export default function MapView({ session }) {
  const { data, error, loading, reload } = useTool('dashboard_map', {}, ['memory'], 15000);
  const [by, setBy] = useState('agent');
  let title = 'Loading…';
  if (data) {
    const older = data.total > data.ids.length ? ` of ${count(data.total)}, the newest` : '';
    title = `${count(data.ids.length)} memories${older}`;
  }
  const change = (event) => setBy(event.target.value);
  const colours = html`<label class="inline">Colour by <select value=${by} onChange=${change}>
    <option>agent</option><option>type</option></select></label>`;
  return html`<${Trouble} error=${error} retry=${reload} /><${Partial} data=${data} />
    <${Card} className="fill" title=${title} aside=${colours}>
      ${data && !data.ids.length
        && html`<${Empty} title="No memories to show">
          The map shows readable memories that have a vector, but no encrypted ones.</${Empty}>`}
      ${!data && loading && html`<p class="quiet">Computing the layout…</p>`}
      ${data?.ids.length > 0 && html`<${Plane} newest=${data} session=${session} by=${by} />
        <p class="quiet small">
          Close points are similar. The two axes show ${Math.round((data.explained || 0) * 100)} % of the variance.
        </p>`}
    </${Card}>`;
}

// Draws charts with Apache ECharts, which is loaded when the first one comes. Its tooltips are drawn on the canvas:
// nothing that agents wrote becomes HTML.
import { html, useEffect, useRef } from './lib.js';

let loading;
const load = () => (loading ||= import('./vendor/echarts.js'));

const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const palette = () => [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map((number) => value(`--series-${number}`));
export const ink = () => ({ text: value('--text'), quiet: value('--quiet'), line: value('--line'), card: value('--card'), accent: value('--accent') });

/** Calls back when the theme changes, by choice or by the system. */
export function onTheme(action) {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  dark.addEventListener('change', action);
  addEventListener('memory:theme', action);
  return () => { dark.removeEventListener('change', action); removeEventListener('memory:theme', action); };
}

/** Makes a chart in an element and keeps its size; gives it with a function that ends it. */
export async function chartIn(element) {
  const echarts = await load();
  if (!element.isConnected) return undefined;
  const chart = echarts.init(element, null, { renderer: 'canvas' });
  const watcher = new ResizeObserver(() => chart.resize());
  watcher.observe(element);
  return { chart, end: () => { watcher.disconnect(); chart.dispose(); } };
}

const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

/** Options that all charts share. */
export function common() {
  const { text, line, card } = ink();
  return {
    color: palette(), animation: !still(), animationDuration: 300, textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: text },
    tooltip: { renderMode: 'richText', backgroundColor: card, borderColor: line, textStyle: { color: text, fontSize: 12 }, confine: true },
  };
}

/** A chart whose options `options()` makes, again for each new `data`; `says` is what it shows, for who cannot see it. */
export function Chart({ options, data, says, height = 200 }) {
  const ref = useRef();
  const made = useRef();
  const latest = useRef(options);
  latest.current = options;
  const draw = () => made.current?.chart.setOption({ ...common(), ...latest.current() }, true);
  useEffect(() => {
    let left = false;
    chartIn(ref.current).then((found) => {
      if (left) { found?.end(); return; }
      made.current = found;
      draw();
    });
    const forget = onTheme(draw);
    return () => { left = true; forget(); made.current?.end(); made.current = undefined; };
  }, []);
  useEffect(() => { draw(); }, [JSON.stringify(data)]);
  return html`<div class="chart" role="img" aria-label=${says} ref=${ref} style=${{ height: `${height}px` }}></div>`;
}

/** Bars that lie, the longest first. */
export function Bars({ figures, says, name = (text) => text }) {
  const rows = Object.entries(figures || {}).sort((one, other) => one[1] - other[1]).slice(-10);
  const options = () => {
    const { quiet, line, text } = ink();
    return {
      grid: { left: 104, right: 40, top: 0, bottom: 0 },
      xAxis: { type: 'value', show: false },
      yAxis: { type: 'category', data: rows.map(([key]) => name(key)), axisLine: { show: false }, axisTick: { show: false }, axisLabel: { color: quiet, width: 96, overflow: 'truncate' } },
      series: [{ type: 'bar', data: rows.map(([, number]) => number), barMaxWidth: 14, itemStyle: { borderRadius: 4 }, label: { show: true, position: 'right', color: text }, showBackground: true, backgroundStyle: { color: line, opacity: 0.35, borderRadius: 4 } }],
    };
  };
  const told = `${says}: ${[...rows].reverse().map(([key, number]) => `${name(key)} ${number}`).join(', ')}`;
  return html`<${Chart} options=${options} data=${rows} says=${told} height=${Math.max(64, rows.length * 27)} />`;
}

// Draws charts with Apache ECharts, which is loaded with the first chart. Tooltips are drawn on the canvas, so text
// that agents wrote never becomes HTML.
import { html, useEffect, useRef } from './lib.js';

let loading;
const load = () => (loading ||= import('./vendor/echarts.js'));

const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const palette = () => [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map((number) => value(`--series-${number}`));
export const ink = () => ({ text: value('--text'), quiet: value('--quiet'), line: value('--line'),
  card: value('--card'), accent: value('--accent') });

/** Calls a function when the theme changes; returns a function that stops this. */
export function onTheme(action) {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  dark.addEventListener('change', action);
  addEventListener('memory:theme', action);
  return () => { dark.removeEventListener('change', action); removeEventListener('memory:theme', action); };
}

/** Creates a chart that follows the size of its element; returns it with a function that removes it. */
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
    color: palette(), animation: !still(), animationDuration: 300,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: text },
    tooltip: { renderMode: 'richText', backgroundColor: card, borderColor: line, textStyle: { color: text,
      fontSize: 12 }, confine: true },
  };
}

/** A chart with options from `options()`, drawn again when `data` changes; `says` describes it to screen readers. */
export function Chart({ options, data, says, height = 200 }) {
  const ref = useRef();
  const drawn = useRef();
  const latest = useRef(options);
  latest.current = options;
  const draw = () => drawn.current?.chart.setOption({ ...common(), ...latest.current() }, true);
  useEffect(() => {
    let left = false;
    chartIn(ref.current).then((found) => {
      if (left) { found?.end(); return; }
      drawn.current = found;
      draw();
    });
    const forget = onTheme(draw);
    return () => { left = true; forget(); drawn.current?.end(); drawn.current = undefined; };
  }, []);
  useEffect(() => { draw(); }, [JSON.stringify(data)]);
  return html`<div class="chart" role="img" aria-label=${says} ref=${ref} style=${{ height: `${height}px` }}></div>`;
}

/** Horizontal bars, longest first. */
export function Bars({ figures, says, name = (text) => text }) {
  const rows = Object.entries(figures || {}).sort((one, other) => one[1] - other[1]).slice(-10);
  const options = () => {
    const { quiet, line, text } = ink();
    return {
      grid: { left: 104, right: 40, top: 0, bottom: 0 },
      xAxis: { type: 'value', show: false },
      yAxis: { type: 'category', data: rows.map(([key]) => name(key)), axisLine: { show: false },
        axisTick: { show: false }, axisLabel: { color: quiet, width: 96, overflow: 'truncate' } },
      series: [{ type: 'bar', data: rows.map(([, number]) => number), barMaxWidth: 14, itemStyle: { borderRadius: 4 },
        label: { show: true, position: 'right', color: text }, showBackground: true, backgroundStyle: { color: line,
        opacity: 0.35, borderRadius: 4 } }],
    };
  };
  const description = `${says}: ${[...rows].reverse().map(([key, number]) => `${name(key)} ${number}`).join(', ')}`;
  return html`<${Chart} options=${options} data=${rows} says=${description}
    height=${Math.max(64, rows.length * 27)} />`;
}

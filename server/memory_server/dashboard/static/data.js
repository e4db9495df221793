// Hooks that load what a view shows, and load it again when something happened that may have changed it.
import { useState, useEffect, useRef, useCallback } from './lib.js';
import { call, hear } from './api.js';

const PAUSE = 1500;

/** Calls a function soon after something of one of the kinds happened, and no more often than each pause. */
export function useHappening(kinds, action, pause = PAUSE) {
  const latest = useRef(action);
  latest.current = action;
  useEffect(() => {
    let timer;
    let last = 0;
    const forget = hear((events, more) => {
      if (timer || !(more || events.some((event) => kinds.includes(event.kind)))) return;
      timer = setTimeout(() => {
        timer = undefined;
        last = Date.now();
        if (!document.hidden) latest.current();
      }, Math.max(200, last + pause - Date.now()));
    });
    return () => { clearTimeout(timer); forget(); };
  }, [kinds.join(), pause]);
}

/** Loads a tool's answer: {data, error, loading, reload}. What is shown stays until there is something newer. */
export function useTool(tool, args, kinds = [], pause = PAUSE) {
  const key = JSON.stringify([tool, args]);
  const [state, setState] = useState({ loading: true });
  const current = useRef(key);
  current.current = key;
  const reload = useCallback(async () => {
    if (!tool) return;
    setState((old) => ({ ...old, loading: true }));
    try {
      const data = await call(tool, args);
      if (current.current === key) setState({ data, loading: false });
    } catch (error) {
      if (current.current === key) setState((old) => ({ data: old.data, error, loading: false }));
    }
  }, [key]);
  useEffect(() => { reload(); }, [key]);
  useHappening(kinds, reload, pause);
  return { ...state, reload };
}

/** The time, ticking, in milliseconds; `ahead` is by how much the server's clock is. */
export function useNow(every = 1000, ahead = 0) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now + ahead;
}

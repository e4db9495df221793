// Hooks that load data, and load it again after events that may have changed it.
import { useState, useEffect, useRef, useCallback } from './lib.js';
import { call, onEvents } from './api.js';

const PAUSE = 1500;

/** Calls a function soon after an event of one of the kinds, at most once per pause. */
export function useEvents(kinds, action, pause = PAUSE) {
  const latest = useRef(action);
  latest.current = action;
  useEffect(() => {
    let timer;
    let last = 0;
    const forget = onEvents((events, more) => {
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

/** Calls a tool: {data, error, loading, reload}. Old data stays until new data arrives. */
export function useTool(tool, args, kinds = [], pause = PAUSE) {
  const key = JSON.stringify([tool, args]);
  const [state, setState] = useState({ loading: true });
  const latestKey = useRef(key);
  latestKey.current = key;
  const reload = useCallback(async () => {
    if (!tool) return;
    setState((old) => ({ ...old, loading: true }));
    try {
      const data = await call(tool, args);
      if (latestKey.current === key) setState({ data, loading: false });
    } catch (error) {
      if (latestKey.current === key) setState((old) => ({ data: old.data, error, loading: false }));
    }
  }, [key]);
  useEffect(() => { reload(); }, [key]);
  useEvents(kinds, reload, pause);
  return { ...state, reload };
}

/** The current time in milliseconds, updated regularly. */
export function useNow(every = 1000) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}

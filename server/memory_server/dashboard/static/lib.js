// What the modules use of the libraries.
import { h, render, Fragment, createContext } from './vendor/preact.js';
import htm from './vendor/htm.js';

export { h, render, Fragment, createContext };
export { useState, useEffect, useLayoutEffect, useMemo, useRef, useCallback, useContext } from './vendor/hooks.js';
/** Markup as tagged templates. Values become text or properties, never HTML. */
export const html = htm.bind(h);

// The few things that every module needs of the libraries, under one roof.
import { h, render, Fragment, createContext } from './vendor/preact.js';
import htm from './vendor/htm.js';

export { h, render, Fragment, createContext };
export { useState, useEffect, useLayoutEffect, useMemo, useRef, useCallback, useContext } from './vendor/hooks.js';
/** Markup as tagged templates. Values are only ever put in as text or properties, never as HTML. */
export const html = htm.bind(h);

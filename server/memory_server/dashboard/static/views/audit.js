// The audit: entries, filters and verification.
import { html, useState } from '../lib.js';
import { call } from '../api.js';
import { Badge, Card, Empty, Field, Stat, Time, Trouble, brief, count, label, shortId, when } from '../parts.js';
import { useTool } from '../data.js';

const PROOFS = { ok: ['good', 'verified'], forged: ['critical', 'forged'], unsigned: ['warn', 'unsigned'],
  'unknown key': ['warn', 'unknown key'] };

function Check() {
  const [state, setState] = useState({});
  const go = async () => {
    setState({ busy: true });
    try { setState({ found: await call('dashboard_audit_check') }); } catch (error) { setState({ error }); }
  };
  const { found } = state;
  let verdict = 'No key is configured: only numbers were checked';
  if (found?.keyed) verdict = found.ok ? 'Intact' : `${found.number_of_problems} problems`;
  return html`<${Card} title="Verify integrity">
    <p class="quiet small">Entries are signed and chained by seals: changes, removals and insertions are detected.</p>
    <button class="primary" onClick=${go} disabled=${state.busy}>
      ${state.busy ? 'Verifying…' : 'Verify all entries'}</button>
    <${Trouble} error=${state.error} />
    ${found && html`<div role="status" class="verdict ${found.ok ? 'good' : 'bad'}">
      <strong>${verdict}</strong>
      <p>${count(found.entries)} entries from number ${found.first}, sealed up to ${found.sealed_to},
        ${' '}${found.unsealed} not yet sealed. ${when(found.checked_at)}</p>
      ${found.head && html`<p class="small">
        Store this head elsewhere, to detect later whether Redis was restored from a backup:
        ${' '}<code class="head">${found.head}</code></p>`}
      <ul>${found.problems.map((problem) => html`<li>${problem.number}: <b>${problem.kind}</b> ${problem.detail}</li>`)}
        </ul>
    </div>`}
  </${Card}>`;
}

function Row({ entry }) {
  const [tone, says] = PROOFS[entry.proof] || ['', 'no key'];
  return html`<tr>
    <td class="number">${entry.number}</td><td><${Time} at=${entry.at} /></td>
    <td>${entry.who}${entry.acted_as && html` <span class="quiet">as ${entry.acted_as}</span>`}</td>
      <td>${label(entry.op)}</td>
    <td><${Badge} kind=${entry.outcome === 'ok' ? '' : 'warn'}>${label(entry.outcome)}</${Badge}></td>
    <td>${entry.ids.slice(0, 3).map((id) => html`<code title=${id}>${shortId(id)}</code> `)}
      ${(entry.count || entry.ids.length) > 3 && html`<span class="quiet">of ${entry.count || entry.ids.length}</span>`}
      </td>
    <td class="quiet small">${entry.origin}</td>
    <td><${Badge} kind=${tone}>${says}</${Badge}>${entry.sealed ? html` <${Badge} kind="good">sealed</${Badge}>` : ''}
      </td>
  </tr>`;
}

export default function Audit({ session }) {
  const [form, setForm] = useState({ who: '', op: '', outcome: '', names: '' });
  const [submitted, setSubmitted] = useState(form);
  const [older, setOlder] = useState([]);
  const args = Object.fromEntries(Object.entries(submitted).filter(([, value]) => value));
  const { data, error, reload } = useTool(session.operator ? 'dashboard_audit' : undefined, args,
    ['memory', 'task', 'grant', 'agent'], 5000);
  const [trouble, setTrouble] = useState();
  const last = older.at(-1) || data;
  const more = async () => {
    try {
      const page = await call('dashboard_audit', { ...args, cursor: last.next_cursor });
      setOlder([...older, page]);
    } catch (refused) { setTrouble(refused); }
  };
  const field = (name) => ({ value: form[name],
    onInput: (event) => setForm({ ...form, [name]: event.target.value.trim() }) });
  if (!session.operator) {
    return html`<${Card}>
      <${Empty} title="For operators">
        The audit shows what all agents do. Open it with an admin token, or with the one-time URL that
        ${' '}<code>redis-memory dashboard</code> prints.</${Empty}></${Card}>`;
  }
  const seen = new Set();
  const entries = [data, ...older].flatMap((page) => page?.entries || [])
    .filter((entry) => !seen.has(entry.id) && seen.add(entry.id));
  return html`<${Trouble} error=${error || trouble} retry=${reload} />
    ${data && html`<div class="stats">
      <${Stat} name="Entries" value=${brief(data.given)} note="numbered without gaps" />
      <${Stat} name="Sealed up to" value=${brief(data.sealed)} note=${data.given > data.sealed
        ? `${count(data.given - data.sealed)} to be sealed` : 'all entries'} tone="good" />
      <${Stat} name="Signatures" value=${data.keyed ? 'on' : 'off'} note=${data.keyed ? 'all entries are signed'
        : 'no key is set'} tone=${data.keyed ? 'good' : 'warn'} />
    </div>`}
    <${Check} />
    <${Card} title="Entries">
      <form class="fields" onSubmit=${(event) => { event.preventDefault(); setOlder([]); setSubmitted({ ...form }); }}>
        <${Field} name="Agent"><input ...${field('who')} /></${Field}>
        <${Field} name="Operation"><input placeholder="store_memory" ...${field('op')} /></${Field}>
        <${Field} name="Outcome"><select ...${field('outcome')}><option value="">any</option>
          <option value="ok">done</option><option value="refused">refused</option></select></${Field}>
        <${Field} name="Contains id"><input ...${field('names')} /></${Field}>
        <button>Filter</button>
      </form>
      <div class="scroll" tabindex="0" role="region" aria-label="Entries of the audit"><table>
        <thead><tr><th scope="col">number</th><th scope="col">when</th><th scope="col">agent</th>
          <th scope="col">operation</th><th scope="col">outcome</th><th scope="col">ids</th><th scope="col">origin</th>
          <th scope="col">signature</th></tr></thead>
        <tbody>${entries.map((entry) => html`<${Row} key=${entry.id} entry=${entry} />`)}</tbody>
      </table></div>
      ${data && !entries.length && html`<p class="quiet">No matching entries.</p>`}
      ${last?.next_cursor && html`<button onClick=${more}>Older</button>`}
    </${Card}>`;
}

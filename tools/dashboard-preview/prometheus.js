// Variables, queries and legends as Grafana's Prometheus data source treats them.

const page = new URLSearchParams(location.search);
const api = page.get('api');

export const dashboardUrl = page.get('dashboard');
export const end = Number(page.get('end'));
export const start = Number(page.get('start'));
export const width = Number(page.get('width') ?? 1400);
export const theme = page.get('theme') ?? 'dark';

const exportInterval = Number(page.get('export-interval') ?? 15);
export const step = Math.max(exportInterval, Math.ceil((end - start) / 240));
const rateInterval = Math.max(step + exportInterval, 4 * exportInterval);

const values = new Map([
  ['__rate_interval', `${rateInterval}s`],
  ['__interval', `${step}s`],
  ['__range', `${end - start}s`],
]);

export function readVariables(dashboard) {
  const chosen = [];
  for (const variable of dashboard.templating.list) {
    const given = page.get(`var-${variable.name}`);
    const preset = variable.includeAll ? variable.allValue : variable.current?.value;
    const value = given ?? preset;
    if (value === undefined) continue;
    values.set(variable.name, value);
    chosen.push([variable.label, value === '.*' ? 'All' : value]);
  }
  return chosen;
}

export function interpolate(text) {
  return text.replace(/\$\{(\w+)\}|\$(\w+)/g, (whole, braced, bare) => values.get(braced ?? bare) ?? whole);
}

export function legend(format, labels) {
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');
}

async function ask(path, parameters) {
  const answer = await (await fetch(`${api}/api/v1/${path}?${new URLSearchParams(parameters)}`)).json();
  if (answer.status !== 'success') throw new Error(answer.error);
  return answer.data.result;
}

// Series as {metric, values}, values in seconds and numbers.
export async function series(target) {
  const query = interpolate(target.expr);
  const found = target.instant
    ? (await ask('query', { query, time: end })).map((one) => ({ metric: one.metric, values: [one.value] }))
    : await ask('query_range', { query, start, end, step });
  return found.map((one) => ({ ...one, values: one.values.map(([at, value]) => [at, Number(value)]) }));
}

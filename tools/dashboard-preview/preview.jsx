// A classic Grafana dashboard, drawn by Grafana's own components over a Prometheus-compatible API.

import React from 'react';
import { createRoot } from 'react-dom/client';
import {
  createTheme, dateTime, FieldType, getDisplayProcessor, reduceField, renderMarkdown, toDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, ThemeContext, TimeSeries } from '@grafana/ui';
import { initPluginTranslations } from '@grafana/i18n';
import { Heatmap, NoData, XYChart } from './drawings.jsx';
import {
  dashboardUrl, end, interpolate, legend, readVariables, series, start, step, theme as mode, width,
} from './prometheus.js';

const ROW = 38, GAP = 8, HEADER = 48, FOOTER = 34;
const theme = createTheme({ colors: { mode } });
const timeRange = { from: dateTime(start * 1000), to: dateTime(end * 1000) };
timeRange.raw = { from: timeRange.from, to: timeRange.to };

// What Grafana adds to a time series that a dashboard leaves out.
const SERIES = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none',
  showPoints: 'auto', pointSize: 5, spanNulls: false, axisPlacement: 'auto', axisColorMode: 'text', axisLabel: '',
  scaleDistribution: { type: 'linear' }, stacking: { mode: 'none', group: 'A' }, thresholdsStyle: { mode: 'off' },
  hideFrom: { viz: false, legend: false, tooltip: false },
};

function applyOverrides(config, name, overrides) {
  for (const { matcher, properties } of overrides ?? []) {
    if (matcher.id !== 'byName' || matcher.options !== name) continue;
    for (const { id, value } of properties) {
      const [last, ...path] = id.split('.').reverse();
      let place = config;
      for (const key of path.reverse()) place = place[key];
      place[last] = value;
    }
  }
}

function frames(panel, found) {
  const built = [];
  for (const target of panel.targets) {
    for (const one of found.get(target.refId)) {
      const name = legend(target.legendFormat, one.metric);
      const { custom, thresholds, ...defaults } = panel.fieldConfig.defaults;
      const config = {
        color: { mode: 'palette-classic' }, ...defaults, displayNameFromDS: name, custom: { ...SERIES, ...custom },
      };
      applyOverrides(config, name, panel.fieldConfig.overrides);
      const values = new Map(one.values);
      const times = target.instant ? [end] : Array.from({ length: Math.floor((end - start) / step) + 1 }, (_, i) => start + i * step);
      const frame = toDataFrame({
        refId: target.refId, name,
        fields: [
          { name: 'Time', type: FieldType.time, config: { interval: step * 1000 }, values: times.map((at) => at * 1000) },
          {
            name: 'Value', type: FieldType.number, labels: one.metric, config,
            values: times.map((at) => (Number.isFinite(values.get(at)) ? values.get(at) : null)),
          },
        ],
      });
      frame.fields[1].state = { seriesIndex: built.length };
      for (const field of frame.fields) field.display = getDisplayProcessor({ field, theme });
      built.push(frame);
    }
  }
  return built;
}

function Stat({ panel, frame, width, height }) {
  const { options } = panel, field = frame.fields[1], [calc] = options.reduceOptions.calcs;
  const value = field.display(reduceField({ field, reducers: [calc] })[calc]);
  if (options.textMode === 'value_and_name') value.title = field.config.displayNameFromDS;
  return <BigValue {...{ width, height, value, theme }} {...options} />;
}

function Body({ panel, data, width, height }) {
  if (panel.type === 'text') {
    return <div className="markdown-html" dangerouslySetInnerHTML={{ __html: renderMarkdown(panel.options.content) }} />;
  }
  if (data.error) return <div style={{ color: theme.colors.error.text }}>{data.error}</div>;
  const { found } = data, built = frames(panel, found);
  if (!built.length) return panel.fieldConfig.defaults.noValue ?? <NoData />;
  switch (panel.type) {
    case 'timeseries':
      return <TimeSeries {...{ width, height, timeRange, theme }} frames={built} structureRev={1} timeZone="utc"
        legend={panel.options.legend} options={panel.options} />;
    case 'stat': return <Stat {...{ panel, width, height }} frame={built[0]} />;
    case 'xychart': return <XYChart {...{ panel, found, width, height }} />;
    case 'heatmap': return <Heatmap {...{ panel, found, width, height }} />;
    default: throw new Error(`no drawing for ${panel.type}`);
  }
}

async function load(panel) {
  try {
    const found = new Map();
    for (const target of panel.targets ?? []) found.set(target.refId, await series(target));
    return { found };
  } catch (error) {
    return { found: new Map(), error: error.message };
  }
}

function Panel({ panel, data, cell }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { position: 'absolute', left: x * cell + GAP / 2, top: HEADER + y * ROW, width: w * cell - GAP, height: h * ROW - GAP };
  if (panel.type === 'row') return <div style={{ ...place, fontSize: 16, fontWeight: 500, paddingTop: 8 }}>{panel.title}</div>;
  return <div style={place}>
    <PanelChrome title={interpolate(panel.title)} width={place.width} height={place.height}>
      {(width, height) => <Body {...{ panel, data, width, height }} />}
    </PanelChrome>
  </div>;
}

async function main() {
  await initPluginTranslations('dashboard-preview');
  const dashboard = await (await fetch(dashboardUrl)).json();
  const chosen = readVariables(dashboard);
  const data = await Promise.all(dashboard.panels.map(load));
  const height = HEADER + FOOTER + ROW * Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ position: 'relative', width, height, background: theme.colors.background.canvas, color: theme.colors.text.primary }}>
        <div style={{ padding: '12px 12px 0', fontSize: 20 }}>
          {dashboard.title}
          <span style={{ fontSize: 12, color: theme.colors.text.secondary, marginLeft: 16 }}>
            {chosen.map(([name, value]) => `${name}: ${value}`).join('   ')}
          </span>
        </div>
        {dashboard.panels.map((panel, index) => <Panel key={panel.id} {...{ panel, data: data[index], cell: width / 24 }} />)}
        <div style={{ position: 'absolute', bottom: 8, left: 12, fontSize: 12, color: theme.colors.text.secondary }}>
          Preview: time series, numbers and frames are Grafana's own components (@grafana/ui); XY charts and heatmaps are drawn by this preview.
        </div>
      </div>
    </ThemeContext.Provider>,
  );
  const summary = dashboard.panels.filter(({ type }) => !['row', 'text'].includes(type)).map((panel) => {
    const { found, error } = data[dashboard.panels.indexOf(panel)];
    return { title: panel.title, series: [...found.values()].flat().length, error };
  });
  setTimeout(() => console.log(`PANELS ${JSON.stringify({ height, summary })}`), 1500);
}

main().catch((error) => console.log(`FAILED ${error.stack}`));

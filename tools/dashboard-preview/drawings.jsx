// Panels that are not on npm: drawn here, so they show the data but not Grafana's own drawing.

import React from 'react';
import { formattedValueToString, getValueFormat } from '@grafana/data';

const AXIS = '#8e8e8e', GRID = '#2c3235', LEFT = 70, BOTTOM = 40, TOP = 8, RIGHT = 12;

function Canvas({ width, height, draw }) {
  const element = React.useRef();
  React.useEffect(() => {
    const canvas = element.current;
    canvas.width = width * 2;
    canvas.height = height * 2;
    const context = canvas.getContext('2d');
    context.scale(2, 2);
    context.font = '12px Inter, sans-serif';
    draw(context);
  }, []);
  return <canvas ref={element} style={{ width, height }} />;
}

function text(value, unit) {
  return formattedValueToString(getValueFormat(unit)(value));
}

// Round steps, so that axes carry readable numbers.
function ticks(limit) {
  const rough = limit / 5, magnitude = 10 ** Math.floor(Math.log10(rough));
  const size = magnitude * [1, 2, 5, 10].find((factor) => factor * magnitude >= rough);
  return Array.from({ length: Math.floor(limit / size) + 1 }, (_, index) => index * size);
}

export function XYChart({ panel, found, width, height }) {
  const byLegend = new Map(panel.targets.map((target) => [target.legendFormat, found.get(target.refId)?.[0]]));
  const override = (name, id) => panel.fieldConfig.overrides
    .find((one) => one.matcher.options === name)?.properties.find((property) => property.id === id)?.value;
  // As joinByField does with mode inner: only the times that every query has.
  const inner = panel.transformations[0].options.mode === 'inner';
  const joined = (inner ? [...byLegend.values()] : []).map((one) => new Set((one?.values ?? []).map(([at]) => at)));
  const curves = panel.options.series.map((curve) => {
    const [xName, yName] = [curve.x.matcher.options, curve.y.matcher.options];
    const xs = new Map(byLegend.get(xName)?.values ?? []);
    const points = (byLegend.get(yName)?.values ?? [])
      .filter(([at]) => joined.every((times) => times.has(at))).map(([at, y]) => [xs.get(at), y]).filter((point) => point.every(Number.isFinite));
    return { xName, yName, points, color: override(yName, 'color')?.fixedColor ?? '#73bf69' };
  });
  const all = curves.flatMap((curve) => curve.points);
  if (!all.length) return <NoData />;
  const xMost = Math.max(...all.map(([x]) => x), 1e-9) * 1.05, yMost = Math.max(...all.map(([, y]) => y), 1e-9) * 1.05;
  const px = (x) => LEFT + (x / xMost) * (width - LEFT - RIGHT);
  const py = (y) => height - BOTTOM - 16 - (y / yMost) * (height - BOTTOM - 16 - TOP);
  const xUnit = override(curves[0].xName, 'unit'), unit = panel.fieldConfig.defaults.unit;
  return <Canvas width={width} height={height} draw={(c) => {
    c.strokeStyle = GRID; c.fillStyle = AXIS;
    const line = (...points) => { c.beginPath(); points.forEach(([x, y]) => c.lineTo(x, y)); c.stroke(); };
    c.textAlign = 'right';
    for (const y of ticks(yMost)) { line([LEFT, py(y)], [width - RIGHT, py(y)]); c.fillText(text(y, unit), LEFT - 6, py(y) + 4); }
    c.textAlign = 'center';
    for (const x of ticks(xMost)) { line([px(x), TOP], [px(x), py(0)]); c.fillText(text(x, xUnit), px(x), py(0) + 16); }
    c.fillText(override(curves[0].xName, 'custom.axisLabel') ?? curves[0].xName, (LEFT + width) / 2, py(0) + 32);
    c.textAlign = 'left';
    let at = 8;
    for (const { yName, color, points } of curves) {
      c.fillStyle = color;
      c.fillRect(at, height - 10, 14, 4);
      c.fillText(yName, at + 20, height - 4);
      at += 36 + c.measureText(yName).width;
      c.globalAlpha = 0.6;
      for (const [x, y] of points) { c.beginPath(); c.arc(px(x), py(y), 3.5, 0, 7); c.fill(); }
      c.globalAlpha = 1;
    }
  }} />;
}

export function Heatmap({ panel, found, width, height }) {
  const rows = (found.get(panel.targets[0].refId) ?? [])
    .map((one) => ({ le: one.metric.le === '+Inf' ? Infinity : Number(one.metric.le), counts: new Map(one.values) }))
    .sort((one, other) => one.le - other.le);
  const times = [...new Set(rows.flatMap((row) => [...row.counts.keys()]))].sort((one, other) => one - other);
  // Buckets are cumulative: a cell is the difference to the row below.
  const cells = times.flatMap((at, column) => rows.map((row, index) => ({
    column, index, count: Math.max(0, (row.counts.get(at) ?? 0) - (rows[index - 1]?.counts.get(at) ?? 0)),
  }))).filter((cell) => cell.count > 1e-9);
  if (!cells.length) return <NoData />;
  const used = cells.map((cell) => cell.index), low = Math.min(...used), high = Math.max(...used);
  const most = Math.max(...cells.map((cell) => cell.count)), unit = panel.options.yAxis.unit;
  const w = (width - LEFT - RIGHT) / times.length, h = (height - 24 - TOP) / (high - low + 1);
  return <Canvas width={width} height={height} draw={(c) => {
    for (const { column, index, count } of cells) {
      c.fillStyle = `hsl(${36 - 20 * Math.sqrt(count / most)}, 90%, ${18 + 50 * Math.sqrt(count / most)}%)`;
      c.fillRect(LEFT + column * w, TOP + (high - index) * h, Math.max(w - 1, 1), Math.max(h - 1, 1));
    }
    c.fillStyle = AXIS;
    c.textAlign = 'right';
    const every = Math.ceil((high - low + 1) / 9);
    for (let index = low; index <= high; index += every) {
      const name = Number.isFinite(rows[index].le) ? text(rows[index].le, unit) : '+Inf';
      c.fillText(name, LEFT - 6, TOP + (high - index) * h + 4);
    }
    c.textAlign = 'center';
    for (const share of [0.1, 0.5, 0.9]) {
      const column = Math.floor(share * (times.length - 1));
      const stamp = new Date(times[column] * 1000).toISOString().slice(11, 19);
      c.fillText(stamp, LEFT + column * w, height - 6);
    }
  }} />;
}

export function NoData() {
  return <div style={{ height: '100%', display: 'grid', placeItems: 'center', color: AXIS }}>No data</div>;
}

// bundle.mjs SOURCE TARGET: the page as one script; run where the packages are installed.

import * as esbuild from 'esbuild';
import { join } from 'node:path';

const [source, target] = process.argv.slice(2);
await esbuild.build({
  entryPoints: [join(source, 'preview.jsx')],
  outfile: join(target, 'preview.js'),
  nodePaths: [join(process.cwd(), 'node_modules')],
  bundle: true,
  format: 'iife',
  platform: 'browser',
  jsx: 'automatic',
  mainFields: ['module', 'browser', 'main'],
  define: { 'process.env.NODE_ENV': '"production"', 'process.env': '{}', global: 'window' },
  loader: { '.svg': 'dataurl', '.woff': 'dataurl', '.woff2': 'dataurl', '.ttf': 'dataurl' },
  logLevel: 'warning',
});

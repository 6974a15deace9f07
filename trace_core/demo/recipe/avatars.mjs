// Avatars as SVG: reads [{style, options}] as JSON from the input, writes [svg]. Run in a folder with the packages.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const require = createRequire(process.cwd() + '/');
const load = (name) => import(pathToFileURL(require.resolve(name)));
const jobs = JSON.parse(readFileSync(0));
const { createAvatar } = await load('@dicebear/core');
const styles = {};
for (const name of new Set(jobs.map((job) => job.style))) styles[name] = await load('@dicebear/' + name);
process.stdout.write(JSON.stringify(jobs.map((job) => createAvatar(styles[job.style], job.options).toString())));

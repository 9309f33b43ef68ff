// Chromium, as the tests start it: ROOST_CHROMIUM, or /usr/bin/chromium.

import { chromium } from "playwright-core";

const options = {
  executablePath: process.env.ROOST_CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
};

export const launch = () => chromium.launch(options);

/** The same with the group of its processes, to stop all of them at once. */
export async function launchApart() {
  const server = await chromium.launchServer(options);
  const browser = await chromium.connect(server.wsEndpoint());
  // The driver starts it as the first of a group of its own.
  return { browser, group: server.process().pid };
}

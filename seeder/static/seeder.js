// SPDX-License-Identifier: GPL-3.0-or-later
// Takes the page anew every few seconds, in place, so that nothing jumps.
"use strict";
const every = Number(document.currentScript.dataset.every) * 1000;
async function renew() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/", { cache: "no-store" });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of ["header", "main", "footer"]) {
        document.querySelector(part).replaceWith(page.querySelector(part));
      }
    } catch {
      document.querySelector("header p").textContent = "The seeder does not answer.";
    }
  }
  setTimeout(renew, every);
}
setTimeout(renew, every);

// SPDX-License-Identifier: GPL-3.0-or-later
// Gives every box with settings a button that copies them.
"use strict";
async function copy(text, box) {
  if (navigator.clipboard) {  // only over HTTPS and on this machine
    try {
      return await navigator.clipboard.writeText(text);
    } catch { /* not allowed: the old way */ }
  }
  const range = document.createRange();
  range.selectNodeContents(box);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  if (!document.execCommand("copy")) throw new Error("not allowed");
}
for (const box of document.querySelectorAll(".copy")) {
  const button = document.createElement("button");
  const said = document.createElement("span");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy ${box.dataset.what}`);
  said.setAttribute("role", "status");
  said.className = "skip";
  button.addEventListener("click", async () => {
    const text = box.querySelector("pre");
    try {
      await copy(text.textContent, text);
      button.textContent = said.textContent = "Copied";
    } catch {
      button.textContent = said.textContent = "Select it to copy";
    }
    setTimeout(() => { button.textContent = "Copy"; said.textContent = ""; }, 2000);
  });
  box.append(button, said);
  box.classList.add("ready");
}

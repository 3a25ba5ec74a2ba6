"use strict";
(() => {
  const tip = document.getElementById("tip");
  const say = (text) => { tip.textContent = text; tip.hidden = !text; };
  const SVG = "http://www.w3.org/2000/svg";

  // What is under the pointer: elements that say it themselves, and cells of strips.
  const strips = new Map();
  for (const table of document.querySelectorAll("[data-strips]")) {
    const content = JSON.parse(document.getElementById(table.dataset.strips).textContent);
    for (const svg of table.querySelectorAll("svg")) {
      const row = content.rows[svg.dataset.row];
      const tip = (column) => (row.of[column] < 0 ? "" : row.before + row.tips[row.of[column]] + row.after);
      strips.set(svg, { columns: content.columns, tip, at: 0 });
    }
    table.content = content;
  }
  const mark = (svg, column) => {
    svg.querySelector(".mark")?.remove();
    if (column < 0) return;
    const box = document.createElementNS(SVG, "rect");
    for (const [key, value] of Object.entries({ x: column, width: 1, y: 0, height: 1, class: "mark" })) box.setAttribute(key, value);
    svg.append(box);
  };
  const tell = (svg, column) => {
    const strip = strips.get(svg);
    strip.at = Math.max(0, Math.min(strip.columns.length - 1, column));
    mark(svg, strip.at);
    say(`${strip.columns[strip.at]}: ${strip.tip(strip.at) || "nothing"}`);
  };
  const under = (event) => {
    const svg = event.target.closest?.("svg");
    if (svg && strips.has(svg)) {
      const box = svg.getBoundingClientRect();
      return tell(svg, Math.floor(((event.clientX - box.left) / box.width) * strips.get(svg).columns.length));
    }
    const other = event.target.closest?.("[data-tip]");
    say(other ? other.dataset.tip : "");
  };
  document.addEventListener("pointermove", under);
  document.addEventListener("click", under);
  document.addEventListener("focusout", (event) => { if (strips.has(event.target)) { mark(event.target, -1); say(""); } });
  document.addEventListener("focusin", (event) => { if (strips.has(event.target)) tell(event.target, strips.get(event.target).at); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") say("");
    const strip = strips.get(event.target);
    if (!strip) return;
    const last = strip.columns.length - 1;
    const to = { ArrowLeft: strip.at - 1, ArrowRight: strip.at + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tell(event.target, to);
  });

  // A search finds a row by its text, and by a name with numbers that are among those of its kind:
  // in its own name they stand as they are, as ranges in braces, or as # for any.
  const among = (group, number) => {
    if (group === undefined || group.includes("…")) return true;
    return group.split(", ").some((run) => {
      const [, low, high = low, step = 1] = /^(\d+)(?:-(\d+)(?: by (\d+))?)?$/.exec(run) ?? [];
      return number >= +low && number <= +high && (number - low) % step === 0;
    });
  };
  const groups = (name) => [...name.matchAll(/\{([^}]*)\}|(\d+)|#/g)].map((found) => found[1] ?? found[2]);
  const finds = (kind, numbers, row) => {
    const key = row.dataset.key.toLowerCase();
    const own = groups(row.querySelector("th").textContent);
    for (let at = key.indexOf(kind); at >= 0; at = key.indexOf(kind, at + 1)) {
      const before = key.slice(0, at).split("#").length - 1;
      if (numbers.every((number, i) => among(own[before + i], number))) return true;
    }
    return false;
  };
  for (const field of document.querySelectorAll("input.search")) {
    const rows = [...field.closest(".searched, section").querySelectorAll("tr[data-key]")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    field.addEventListener("input", () => {
      const plain = field.value.trim().toLowerCase();
      const kind = plain.replace(/\d+/g, "#");
      const numbers = (plain.match(/\d+/g) ?? []).map(Number);
      let count = 0;
      rows.forEach((row, i) => {
        row.hidden = !(texts[i].includes(plain) || finds(kind, numbers, row));
        count += !row.hidden;
      });
      say(plain ? `${count} of ${rows.length} rows` : "");
    });
  }

  // Where a rank is, in each map of a group.
  for (const label of document.querySelectorAll("[data-maps]")) {
    const field = label.querySelector("input");
    field.addEventListener("input", () => {
      const rank = Number(field.value);
      let said = "";
      for (const table of document.querySelectorAll(`[data-strips^="${label.dataset.maps}-"]`)) {
        const { starts, columns } = table.content.ranks;
        const column = field.value === "" ? -1 : columns.findIndex((own) => starts.some((start) => own.includes(rank - start)));
        for (const svg of table.querySelectorAll("svg")) {
          mark(svg, column);
          const tip = column < 0 ? "" : strips.get(svg).tip(column);
          if (tip) said += `\n${tip}`;
        }
        if (column >= 0) table.scrollIntoView({ block: "nearest" });
      }
      say(said ? `rank ${rank} holds${said}` : field.value === "" ? "" : `rank ${rank} is not there`);
    });
  }
})();

"use strict";
// Draws the figures of the report from the JSON in the page. All state is here: what is hidden, and which axes are linear.
(() => {
  const content = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const linear = new Map(); // figure name → set of axes shown linearly
  const drawings = new Map(); // plot element → its specification and the figure it belongs to; a heat map's scheme
  const near = new Set(); // plots on the screen or close to it
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const tip = document.createElement("div");

  // The specification as it is shown now: without hidden schemes, on the chosen axes.
  function shown({ key, spec, figure }) {
    const result = structuredClone(spec);
    result.config = content.config;
    result.data.values = result.data.values.filter((row) => !hidden.has(row.key));
    for (const layer of result.layer) {
      if (touch) layer.params = layer.params?.filter((param) => param.name !== "zoom");
      for (const name of ["x", "y"]) {
        const { axis, scale } = layer.encoding[name] ?? {};
        if (!axis || !scale) continue;
        if (name === "y" && key === null && hidden.size > 0) delete scale.domain;
        if (scale.type !== "log") continue;
        if (linear.get(figure).has(name)) {
          scale.type = "linear";
          scale.zero = false;
          axis.title = axis.title.replace(/ \(log\)$/, "");
          delete axis.values;
        } else if (axis.values) {
          // Chosen ticks suit all schemes; if fewer than two are left, because of zooming or hiding, Vega chooses.
          const left = axis.values.map((tick) => `inrange(${tick}, domain('${name}'))`).join(" + ");
          axis.values = { expr: `${left} > 1 ? ${JSON.stringify(axis.values)} : null` };
        }
      }
    }
    return result;
  }

  async function draw(plot) {
    const drawing = drawings.get(plot);
    drawing.stale = false;
    drawing.view?.finalize();
    const options = {
      mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: tell,
      logLevel: 1, // errors only: a panel whose schemes are all hidden has axes without values
    };
    drawing.view = (await vegaEmbed(plot, shown(drawing), options)).view;
    plot.view = drawing.view;
    if (!drawing.stale) plot.dataset.drawn = "true";
  }

  // One plot is drawn once at a time; if what it shows changes meanwhile, it is drawn again.
  async function refresh(plot) {
    const drawing = drawings.get(plot);
    if (drawing.busy) return;
    drawing.busy = true;
    while (drawing.stale && near.has(plot)) await draw(plot);
    drawing.busy = false;
  }

  // Plots that are far from the screen are drawn when they come closer.
  function redraw(filter) {
    for (const [plot, drawing] of drawings) {
      plot.parentElement.classList.toggle("off", hidden.has(drawing.key));
      if (!filter(drawing)) continue;
      drawing.stale = true;
      delete plot.dataset.drawn;
      refresh(plot);
    }
  }

  function tell(_handler, event, _item, rows) {
    tip.hidden = !rows?.length;
    if (tip.hidden) return;
    tip.replaceChildren(...rows.map((row) => {
      const line = document.createElement("div");
      const name = document.createElement("b");
      name.textContent = row.name ?? row.label;
      line.append(name, ` ${row.hover ?? ""}`);
      return line;
    }));
    const after = event.clientX + 16 + tip.offsetWidth < window.innerWidth;
    tip.style.left = `${after ? event.clientX + 16 : Math.max(4, event.clientX - 16 - tip.offsetWidth)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, window.innerHeight - tip.offsetHeight - 4))}px`;
  }

  function prepare() {
    tip.id = "tip";
    tip.hidden = true;
    document.body.append(tip);
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) near.delete(target);
        else {
          near.add(target);
          refresh(target);
        }
      }
    }, { rootMargin: "600px" });
    for (const [figure, panels] of Object.entries(content.figures)) {
      linear.set(figure, new Set());
      panels.forEach((panel, index) => {
        const plot = document.getElementById(`${figure}-${index + 1}`);
        drawings.set(plot, { ...panel, figure, stale: true, busy: false, view: null });
        observer.observe(plot);
      });
    }
    window.addEventListener("beforeprint", () => {
      for (const plot of drawings.keys()) {
        near.add(plot);
        refresh(plot);
      }
    });
  }

  function toggle(chip, show) {
    const { key } = chip.dataset;
    if (show) hidden.delete(key); else hidden.add(key);
    chip.setAttribute("aria-pressed", String(show));
  }

  function listen() {
    const chips = [...document.querySelectorAll(".chip")];
    const has = (key) => (drawing) => drawing.spec.data.values.some((row) => row.key === key);
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        toggle(chip, hidden.has(chip.dataset.key));
        redraw(has(chip.dataset.key));
      });
      chip.addEventListener("dblclick", () => {
        chips.forEach((other) => toggle(other, other === chip));
        redraw(() => true);
      });
    }
    document.getElementById("show-all")?.addEventListener("click", () => {
      chips.forEach((chip) => toggle(chip, true));
      redraw(() => true);
    });
    for (const button of document.querySelectorAll("[data-axis]")) {
      button.addEventListener("click", () => {
        const { figure, axis } = button.dataset;
        const axes = linear.get(figure);
        if (!axes.delete(axis)) axes.add(axis);
        button.textContent = `${axis} axis: ${axes.has(axis) ? "linear" : "logarithmic"}`;
        redraw((drawing) => drawing.figure === figure);
      });
    }
    for (const button of document.querySelectorAll("[data-table]")) {
      button.addEventListener("click", () => saveTable(button.dataset.table));
    }
    for (const button of document.querySelectorAll("[data-save]")) {
      button.addEventListener("click", () => saveImage(button.dataset.save));
    }
  }

  function saveTable(name) {
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = [...document.querySelectorAll(`#table-${name} tr`)];
    const lines = rows.map((row) => [...row.cells].map((cell) => quoted(cell.textContent)).join(","));
    save(lines.join("\n") + "\n", "text/csv", `${name}.csv`);
  }

  function saveImage(name) {
    const css = getComputedStyle(document.documentElement);
    drawings.get(document.getElementById(name)).view.toSVG().then((svg) => {
      const coloured = svg.replace(/var\((--\w+)\)/g, (_, variable) => css.getPropertyValue(variable).trim());
      save(coloured, "image/svg+xml", `${name}.svg`);
    });
  }

  function save(text, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // Vega travels compressed, which makes the page smaller by half a megabyte.
  async function loadVega() {
    const bytes = Uint8Array.from(atob(document.getElementById("vega").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.vegaEmbed) throw new Error("Vega did not load");
  }

  loadVega().then(() => {
    prepare();
    listen();
    document.documentElement.dataset.ready = "true";
  }).catch((error) => {
    document.getElementById("trouble").hidden = false;
    console.error(error);
  });
})();

"use strict";
// Draws the figures of the report from the JSON in the page. All state is here: what is hidden, and which axes are linear.
(() => {
  const content = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const linear = new Map(); // figure name → set of axes shown linearly
  const drawn = new Map(); // plot element → its drawing and the figure it belongs to
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function resolved(value, css) {
    if (typeof value === "string") {
      return value.startsWith("var(--") ? css.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolved(item, css));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, css)]));
    }
    return value;
  }

  function axis(spec, name, figure, css) {
    const colour = (variable) => css.getPropertyValue(variable).trim();
    const result = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid"),
      tickfont: { color: colour("--muted"), size: 12 }, automargin: true, ...spec,
    };
    result.title = { ...spec.title, font: { color: colour("--ink"), size: 12.5 }, standoff: 8 };
    // A range fits all schemes on the chosen axis; with some hidden or another axis, plotly finds its own.
    if (name === "y" && (hidden.size > 0 || linear.get(figure).has(name))) delete result.range;
    if (spec.type === "log" && linear.get(figure).has(name)) {
      result.type = "linear";
      delete result.tickvals;
      delete result.ticktext;
    }
    return result;
  }

  function layout(drawing, figure, css) {
    const colour = (variable) => css.getPropertyValue(variable).trim();
    return {
      ...resolved(drawing.layout, css),
      xaxis: axis(drawing.layout.xaxis, "x", figure, css),
      yaxis: axis(drawing.layout.yaxis, "y", figure, css),
      paper_bgcolor: colour("--panel"), plot_bgcolor: colour(drawing.rows === undefined ? "--panel" : "--shade"),
      font: { family: getComputedStyle(document.body).fontFamily, color: colour("--ink"), size: 12 },
      margin: { l: 52, r: 12, t: 26, b: 44, ...drawing.layout.margin }, showlegend: false, dragmode: touch ? false : "zoom",
      hoverlabel: {
        bgcolor: colour("--shade"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12 }, align: "left",
      },
    };
  }

  function draw(plot) {
    const { drawing, figure } = drawn.get(plot);
    const css = getComputedStyle(document.documentElement);
    const data = resolved(drawing.data, css).map((trace) => ({ ...trace, visible: !hidden.has(trace.meta.key) }));
    for (const trace of data) {
      if (trace.colorbar) trace.colorbar.tickfont = { color: css.getPropertyValue("--muted").trim() };
    }
    plot.parentElement.classList.toggle("off", drawing.rows !== undefined && data.every((trace) => !trace.visible));
    const options = {
      displaylogo: false, responsive: true, displayModeBar: touch ? false : "hover",
      modeBarButtons: [["toImage", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: figure },
    };
    return Plotly.react(plot, data, layout(drawing, figure, css), options).then(() => {
      plot.dataset.drawn = String(Number(plot.dataset.drawn || 0) + 1);
      return keepTicks(plot);
    });
  }

  // Chosen ticks suit all schemes. With some hidden, the axis may show fewer than two of them: then plotly chooses.
  function keepTicks(plot) {
    const shown = plot.layout.yaxis;
    if (shown.type !== "log" || !shown.tickvals || !shown.range) return undefined;
    const [low, high] = shown.range.map((end) => 10 ** end);
    if (shown.tickvals.filter((tick) => tick >= low && tick <= high).length >= 2) return undefined;
    return Plotly.relayout(plot, { "yaxis.tickmode": "auto", "yaxis.nticks": 6, "yaxis.tickformat": "~g" });
  }

  function drawAll(filter = () => true) {
    return Promise.all([...drawn.keys()].filter((plot) => plot.dataset.drawn && filter(plot)).map(draw));
  }

  function prepare() {
    const waiting = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        waiting.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "600px" });
    for (const [figure, drawings] of Object.entries(content.figures)) {
      linear.set(figure, new Set());
      drawings.forEach((drawing, index) => {
        const plot = document.getElementById(`${figure}-${index + 1}`);
        drawn.set(plot, { drawing, figure });
        if (drawing.rows > 16) plot.style.height = `${Math.min(900, 90 + 9 * drawing.rows)}px`;
        waiting.observe(plot);
      });
    }
    window.addEventListener("beforeprint", () => [...drawn.keys()].forEach(draw));
    dark.addEventListener("change", () => drawAll());
  }

  function toggle(chip, show) {
    const key = chip.dataset.key;
    if (show) hidden.delete(key); else hidden.add(key);
    chip.setAttribute("aria-pressed", String(show));
  }

  function listen() {
    const chips = [...document.querySelectorAll(".chip")];
    const showing = (key) => (plot) => drawn.get(plot).drawing.data.some((trace) => key === undefined || trace.meta.key === key);
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        toggle(chip, hidden.has(chip.dataset.key));
        drawAll(showing(chip.dataset.key));
      });
      chip.addEventListener("dblclick", () => {
        chips.forEach((other) => toggle(other, other === chip));
        drawAll();
      });
    }
    document.getElementById("show-all")?.addEventListener("click", () => {
      chips.forEach((chip) => toggle(chip, true));
      drawAll();
    });
    for (const button of document.querySelectorAll("[data-axis]")) {
      button.addEventListener("click", () => {
        const { figure, axis: name } = button.dataset;
        const axes = linear.get(figure);
        if (!axes.delete(name)) axes.add(name);
        button.textContent = `${name} axis: ${axes.has(name) ? "linear" : "logarithmic"}`;
        drawAll((plot) => drawn.get(plot).figure === figure);
      });
    }
    for (const button of document.querySelectorAll("[data-table]")) {
      button.addEventListener("click", () => download(button.dataset.table));
    }
  }

  function download(name) {
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = [...document.querySelectorAll(`#table-${name} tr`)];
    const lines = rows.map((row) => [...row.cells].map((cell) => quoted(cell.textContent)).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // plotly.js travels compressed, which more than halves the page.
  async function loadPlotly() {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("plotly.js did not load");
  }

  loadPlotly().then(() => {
    prepare();
    listen();
    document.documentElement.dataset.ready = "true";
  }).catch((error) => {
    document.getElementById("trouble").hidden = false;
    console.error(error);
  });
})();

"use strict";
// Unpacks plotly.js and draws the frontier in the place of its still picture, which stays where that cannot be done.
(async () => {
  if (!("DecompressionStream" in window)) return;
  const text = (id) => document.getElementById(id).textContent;
  const packed = Uint8Array.from(atob(text("library").trim()), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);

  const { data, layout } = JSON.parse(text("frontier-data"));
  const touch = window.matchMedia("(pointer: coarse)").matches;
  layout.dragmode = touch ? false : "zoom"; // a finger that drags wants to scroll the page
  if (window.innerWidth < 640) {
    layout.font.size = layout.hoverlabel.font.size = 12;
    layout.margin.l = 44;
    layout.margin.r = 4;
  }
  document.body.classList.add("live");
  try {
    await Plotly.newPlot("drawn", data, layout, { responsive: true, displayModeBar: false });
  } catch (error) {
    document.body.classList.remove("live");
    throw error;
  }
  document.body.dataset.drawn = "yes";
})();

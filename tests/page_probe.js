// Run inside the page: what a reader would stumble over, as JSON in the title.
const errors = [];
addEventListener("error", e => errors.push(e.message));
addEventListener("securitypolicyviolation", e => errors.push("blocked " + e.blockedURI));
addEventListener("load", () => {
  const all = q => [...document.querySelectorAll(q)], box = e => e.getBoundingClientRect();
  const cross = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const color = (q, name) => { const e = document.querySelector(q); return e && getComputedStyle(e)[name]; };
  const overlaps = all("svg[role=img]").flatMap(svg => { const t = [...svg.querySelectorAll("text")];
    return t.flatMap((a, i) => t.slice(i + 1).filter(b => cross(box(a), box(b)))
      .map(b => svg.ariaLabel + ": " + a.textContent + " / " + b.textContent)); });
  const cut = all("svg text").filter(t => { const a = box(t), b = box(t.closest("svg"));
    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; });
  const beyond = all("body *").filter(e => box(e).right > innerWidth + 1 && !e.closest(".wide"));
  parent.document.title = JSON.stringify({
    inner: innerWidth, scroll: document.documentElement.scrollWidth, errors, overlaps,
    height: Math.ceil(box(document.body).bottom),
    cut: cut.map(t => t.textContent), beyond: beyond.map(e => e.outerHTML.slice(0, 80)),
    images: document.images.length, broken: [...document.images].filter(i => !i.naturalWidth).length,
    loaded: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
    least: Math.min(...all("svg text").filter(t => t.textContent).map(t => box(t).height)),
    page: color("body", "backgroundColor"),
    inks: { body: color("body", "color"), note: color(".note", "color"), verdict: color(".good, .bad", "color"),
      chart: color("svg text", "fill"), line: color("svg polyline", "stroke") },
  });
});

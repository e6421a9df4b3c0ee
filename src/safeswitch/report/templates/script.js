(function () {
  "use strict";
  var root = document.documentElement;
  var key = "safeswitch-theme";
  function kept() { try { return localStorage.getItem(key); } catch (e) { return null; } }
  function dark() {
    var chosen = root.getAttribute("data-theme");
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  var before = kept();
  if (before) { root.setAttribute("data-theme", before); }
  document.getElementById("theme").addEventListener("click", function () {
    var next = dark() ? "light" : "dark";
    root.setAttribute("data-theme", next);
    try { localStorage.setItem(key, next); } catch (e) { return; }
  });
})();

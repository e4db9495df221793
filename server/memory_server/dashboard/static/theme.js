// Sets the theme before the first paint, so that the page does not flash.
(() => {
  let theme = 'auto';
  try { theme = localStorage.getItem('theme') || 'auto'; } catch { /* storage may be off */ }
  if (theme !== 'auto') document.documentElement.dataset.theme = theme;
})();

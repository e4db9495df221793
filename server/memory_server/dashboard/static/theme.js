// Sets the chosen theme before anything is drawn, so that nothing flashes.
(() => {
  let theme = 'auto';
  try { theme = localStorage.getItem('theme') || 'auto'; } catch { /* storage may be off */ }
  if (theme !== 'auto') document.documentElement.dataset.theme = theme;
})();

// Opened from a disk the page has no modules and can't load its network: browsers let such a page read no other file. It
// says so instead of waiting. No module itself, this script runs there too.
if (location.protocol === "file:")
  addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("#drop, section[aria-labelledby=try], #choices").forEach((part) => (part.hidden = true));
    const code = (text) => Object.assign(document.createElement("code"), { textContent: text }), serve = code("python -m http.server --bind 127.0.0.1");
    document.getElementById("status").replaceChildren(
      "This page was opened as a file, and browsers let such a page load nothing. In its folder run ", serve, " and open ", code("http://127.0.0.1:8000"), " instead.");
  });

"""A tab of Chromium that shows `colony ui`, and notes each fault: errors, dialogs, refusals."""

from __future__ import annotations

from typing import Any

from tests.sdk.browser.support import Browser

# Playwright's own styles for a page that it takes a picture of are no fault of ours.
_OPEN = """
const context = await browser.newContext({
  viewport: {width: args.width, height: args.height}, colorScheme: args.scheme,
  acceptDownloads: true,
});
const page = pages[args.name] = await context.newPage();
page.faults = [];
page.setDefaultTimeout(90000);
page.on("pageerror", (error) => page.faults.push(String(error)));
page.on("dialog", (dialog) => { page.faults.push("dialog"); dialog.dismiss(); });
page.on("console", (said) => {
  if (said.type() === "error") page.faults.push(said.text());
});
await page.goto(args.address);
await page.locator("html[data-ready]").waitFor();
"""


class Tab:
    """One signed-in browser. `run` gets JavaScript with `page` and `args`."""

    def __init__(self, browser: Browser, name: str) -> None:
        self._browser = browser
        self._name = name

    def run(self, code: str, **args: Any) -> Any:
        """Run code in the driver, next to the page."""
        code = f"const page = pages[args.name]; {code}"
        return self._browser.run(code, seconds=100, name=self._name, **args)

    def open(
        self, address: str, width: int = 1280, height: int = 800, scheme: str = "light"
    ) -> None:
        """Sign in with a one-time address."""
        args: dict[str, Any] = {"address": address, "width": width, "height": height}
        self._browser.run(_OPEN, seconds=100, name=self._name, scheme=scheme, **args)

    def close(self) -> None:
        """Close it; it must have been without a fault."""
        faults = self.run("await page.context().close(); return page.faults")
        assert faults == [], faults

    def faults(self) -> list[str]:
        """Return the faults so far, and forget them."""
        found: list[str] = self.run("return page.faults.splice(0)")
        return found

    def go(self, path: str) -> None:
        """Go to a page by its path, and wait until it has drawn itself."""
        self.run(
            """
            const base = page.url().split("#")[0];
            await page.goto(`${base}#/${args.path}`);
            await page.locator("main h1").waitFor();
            await page.locator("main > :is(.body, .body > *) > *").first().waitFor();
            """,
            path=path,
        )

    def see(self, text: str, within: str = "main") -> None:
        """Wait until a text is shown."""
        self.run(
            "const found = page.locator(args.within).getByText(args.text);"
            "await found.locator('visible=true').first().waitFor()",
            text=text,
            within=within,
        )

    def text(self, selector: str) -> str:
        """Return the text of the first element."""
        return str(self.run("return page.locator(args.at).first().innerText()", at=selector))

    def click(self, name: str, within: str = "main", role: str = "button") -> None:
        """Click the first button or link with a name."""
        self.run(
            "await page.locator(args.within)"
            ".getByRole(args.role, {name: args.label, exact: true}).first().click()",
            within=within,
            role=role,
            label=name,
        )

    def confirm(self, name: str) -> None:
        """Click a button of the dialog that asks."""
        self.click(name, within="dialog")

    def overflow(self) -> int:
        """Return by how many px the page is wider than its window."""
        return int(
            self.run(
                "return page.evaluate(() => document.documentElement.scrollWidth"
                " - document.documentElement.clientWidth)"
            )
        )

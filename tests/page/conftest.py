"""A real browser on the page of a real stack: broker, queue, worker and bucket on this machine."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.stack_thread import StackThread

#: What a phone and a desk have, and a scheme for each.
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}
DESK = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
#: What the browser itself says of a request that a test has cut off, or meant to be refused.
FAILED = "Failed to load resource"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with StackThread(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture
def browser(chromium, stack):
    """Opens the page, signed in; in the end nothing may have been complained of on any console."""
    complaints, contexts = [], []

    def noted(message):
        if message.type in ("error", "warning") and not (
            browser.may_fail and FAILED in message.text
        ):
            complaints.append(message.text)

    def browser(at="", key=stack.stack.api_key, **options):
        context = chromium.new_context(**(DESK | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", noted)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(
            f"{stack.stack.broker_url}/#key={key}" if key else f"{stack.stack.broker_url}/{at}"
        )
        if key:
            page.wait_for_selector("#nav a, .signin")
            if at:
                page.goto(f"{stack.stack.broker_url}/{at}")
        return page

    browser.may_fail = False
    yield browser
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def is_accessible():
    """Checks a page as it is now by axe-core, and that nothing of it lies beside the window."""
    axe = Axe()

    def check(page, what):
        # Colours that are still changing would be measured in between.
        page.wait_for_timeout(450)
        found = axe.run(page)
        assert found.violations_count == 0, f"{what}: {found.generate_report()}"
        too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(too_wide) <= 0, f"{what}: scrolls sideways"

    return check

"""Opens pages in a browser and inspects them."""

import json

DESKTOP, PHONE = (1280, 900), (390, 844)


class Browser:
    """A Chromium driven by selenium: opens files, and tells what they asked for and what their console says."""

    def __init__(self, driver):
        self.driver = driver
        self.set("Network.enable")
        self.set("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def set(self, command, **parameters):
        """A command of Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def run(self, script, *arguments):
        """Runs the body of a function in the page; `return` gives its value, a promise's included."""
        return self.driver.execute_script(script, *arguments)

    def size(self, width, height):
        """The size of the viewport; a width below 600 is a telephone's."""
        self.set(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def dark(self, dark):
        """Sets the colour scheme that the system prefers."""
        wanted = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.set("Emulation.setEmulatedMedia", features=[wanted])

    def open(self, page, fragment="", wait=""):
        """Loads a page anew, and waits until an element that matches `wait` is there."""
        self.driver.get("about:blank")
        self.requests(), self.console()  # what came before
        self.driver.get(page.as_uri() + fragment)
        self.run("localStorage.clear()")
        if wait:
            self.wait(f"return document.querySelector({json.dumps(wait)}) !== null")

    def wait(self, script, seconds=60.0):
        """Until the script gives true; a page that never gets there fails the test."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: self.run(script))

    def requests(self):
        """Addresses asked for since the last time, the page's own among them."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def console(self):
        """Returns the console messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def press(self, *keys):
        """Presses keys one after another, and gives the element that then has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()
        return str(self.run("return document.activeElement.outerHTML"))

    def beyond_the_edge(self):
        """Elements that make the page wider than its viewport."""
        return list(
            self.run(
                """
                const width = document.documentElement.clientWidth;
                if (document.documentElement.scrollWidth <= width) return [];
                return [...document.body.querySelectorAll("*")]
                  .filter((e) => e.getBoundingClientRect().right > width + 1 && !e.closest(".scroll, nav, svg"))
                  .map((e) => e.outerHTML.slice(0, 120));
                """
            )
        )

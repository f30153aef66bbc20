from .inputs import SEEN


def pytest_terminal_summary(terminalreporter):
    if SEEN:
        terminalreporter.write_line(f"{sum(SEEN.values())} generated bad inputs: {dict(SEEN)}")

"""A reporter that keeps what it receives, for tests of the runner."""


class Recorder:
    def __init__(self):
        self.lines, self.steps, self.segments, self.results = [], [], [], []

    def log(self, message):
        self.lines.append(message)

    def progress(self, progress):
        self.steps.append(progress)

    def segment(self, segment):
        self.segments.append(segment)

    def finished(self, result):
        self.results.append(result)

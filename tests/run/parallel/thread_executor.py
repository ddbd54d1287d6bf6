"""An executor that needs no Ray."""

import contextlib
import queue
import threading

from tokenarium.run.parallel import worker
from tokenarium.run.parallel.scheduler import Node

NODE = Node("here", 4, 16)


class Threads:
    """An executor whose workers are threads of this process."""

    def __init__(self, *nodes):
        self.nodes = list(nodes) or [NODE]
        self.opened = 0
        self.started, self.most, self.running = [], 0, 0
        self._ended = queue.Queue()

    def open(self):
        self.opened += 1
        return self.nodes

    def start(self, task, needs, node):
        self.started.append((task.name, node.name))
        self.running += 1
        self.most = max(self.most, self.running)
        threading.Thread(target=lambda: self._ended.put((task.name, worker.run(task)))).start()

    def wait(self, seconds):
        with contextlib.suppress(queue.Empty):
            ended = self._ended.get(timeout=seconds) if seconds else self._ended.get_nowait()
            self.running -= 1
            return [ended]
        return []

    def stop(self):
        while self.running:
            self.wait(1)

    def close(self):
        pass

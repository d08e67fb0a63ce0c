"""The fenced blocks of a Markdown document, and the marks above them: HTML comments, unseen by readers.

    <!-- not run: reason -->     the commands of this block are not run
    <!-- terminal: NAME -->      they are typed into another terminal, where the last one stays until Ctrl-C
    <!-- file: PATH -->          no commands: this is what stands in that file
    <!-- output -->              no commands: this is what the block before it prints

Blocks of commands are `sh` (a command on each line) and `console` (commands behind `$ `, and what they print). In what is
printed `…` stands for anything within a line.
"""

import re

COMMANDS = ("sh", "console")
# What is not run, said once for all of them.
BENCHMARK = "cargo bench"


class Block:
    """A fenced block: where it is, its kind, its lines, and its marks."""

    def __init__(self, document, line, kind, marks):
        self.document, self.line, self.kind, self.marks = document, line, kind, marks
        self.lines = []

    @property
    def place(self):
        return f"{self.document}:{self.line}"

    @property
    def text(self):
        return "".join(line + "\n" for line in self.lines)

    @property
    def left_out(self):
        """Why it is not run."""
        commands = [command for command, _ in self.steps()]
        if commands and all(command.startswith(BENCHMARK) for command in commands):
            return "benchmarks take minutes"
        return self.marks.get("not run")

    def steps(self):
        """Each command with the lines that it prints. A backslash at its end leads a command on to the next line."""
        if self.kind not in COMMANDS or "output" in self.marks or "file" in self.marks:
            return []
        steps, open_command = [], False
        for line in self.lines:
            command = line[2:] if self.kind == "console" and line.startswith("$ ") else line
            if open_command:
                steps[-1][0] += "\n" + line
            elif self.kind == "sh" or command is not line:
                if not command.strip() or command.lstrip().startswith("#"):
                    continue
                steps.append([command, []])
            elif line.strip() and steps:
                steps[-1][1].append(line)
                continue
            open_command = line.endswith("\\")
        return steps


def blocks(document, text):
    """All of them, in order."""
    found, marks, inside = [], {}, None
    for number, line in enumerate(text.splitlines(), 1):
        if inside is not None:
            if line.rstrip() == "```":
                found.append(inside)
                inside, marks = None, {}
            else:
                inside.lines.append(line.rstrip())
        elif mark := re.fullmatch(r"<!-- (not run|terminal|file|output)(?:: (.+))? -->", line.strip()):
            marks[mark[1]] = mark[2] or ""
        elif line.startswith("```"):
            inside = Block(document, number, line[3:].strip(), marks)
        elif line.strip():
            marks = {}
    return found


def matches(expected, output):
    """The first line shown that is not among what was printed, in this order; None if all are."""
    printed = iter(output.splitlines())
    for line in expected:
        pattern = re.compile(".*".join(re.escape(part) for part in line.rstrip().split("…")))
        if not any(pattern.fullmatch(other.rstrip()) for other in printed):
            return line
    return None

# A hundred times each number on standard input, a line for a line.
import sys

for line in sys.stdin:
    print(int(line) * 100)

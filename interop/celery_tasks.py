"""Serves Celery's clients: rpc_server --content-type application/json --json-coprocess '*=python3 celery_tasks.py'"""
import json, sys

TASKS = {"add": lambda x, y: x + y}

for line in sys.stdin:
    request = json.loads(line)
    headers = request["headers"]
    meta = {"task_id": headers["id"], "status": "SUCCESS", "traceback": None, "children": []}
    try:
        positional, keywords, _ = json.loads(request["argument"])
        meta["result"] = TASKS[headers["task"]](*positional, **keywords)
    except Exception as failure:
        error = {"exc_type": type(failure).__name__, "exc_message": [str(failure)]}
        meta.update(status="FAILURE", result={**error, "exc_module": "builtins"})
    print(json.dumps({"result": json.dumps(meta)}), flush=True)

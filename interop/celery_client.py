"""One task: celery_client.py URL QUEUE TASK ARGUMENTS SECONDS; the arguments are a JSON array"""
import json, sys, celery

url, queue, task, arguments, seconds = sys.argv[1:]
app = celery.Celery(broker=url, backend="rpc://")
result = app.send_task(task, json.loads(arguments), queue=queue)
try:
    print(result.get(timeout=float(seconds)))
except celery.exceptions.TimeoutError:
    sys.exit("no answer in time")
except Exception as failure:
    sys.exit(f"{type(failure).__name__}: {failure}")

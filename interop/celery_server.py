"""A worker with a task that adds: celery_server.py URL QUEUE"""
import sys, celery

url, queue = sys.argv[1:]
app = celery.Celery(broker=url, backend="rpc://")


@app.task(name="add")
def add(x, y):
    return x + y


@celery.signals.worker_ready.connect
def ready(**_):
    # Celery sends what is printed to its log.
    print(" [x] Awaiting RPC requests", file=sys.__stdout__, flush=True)


app.Worker(
    pool="solo",
    queues=[queue],
    quiet=True,
    loglevel="CRITICAL",
    without_gossip=True,
    without_mingle=True,
    without_heartbeat=True,
).start()

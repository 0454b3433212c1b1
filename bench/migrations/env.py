from foundation.store.environment import run

run()

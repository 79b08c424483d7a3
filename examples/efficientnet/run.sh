#!/usr/bin/env bash
# Serves what model-store/b4.mar is now. May be run again whenever the archive has changed: a server that runs goes on
# running (the first command then says so), the old model is removed, and the new one registered.
torchserve --start --model-store model-store --ts-config config.properties >> server.log
curl -s -X DELETE http://localhost:8081/models/b4
curl -s -X POST "http://localhost:8081/models?model_name=b4&url=b4.mar&batch_size=4&max_batch_delay=1000&initial_workers=1&synchronous=true"

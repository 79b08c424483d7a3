from collections import Counter
from dataclasses import replace

from mariner import Model

files = {"model_file": "model.py", "handler": "handler.py", "serialized_file": "first.pt"}
first = Model(id="dev/thermometer", version="0.0.1", serving_config=files)
service = first.deploy(target="local")
print(service.predict({"celsius": 21.5}))
second = replace(first, version="0.0.2", serving_config={**files, "serialized_file": "second.pt"})
second.deploy_canary(canary_traffic_percentage=30)
print(Counter(service.predict({"celsius": 21.5})["fahrenheit"] for _ in range(100)))
second.promote_canary()
service.undeploy()

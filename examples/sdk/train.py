import torch
from model import Thermometer

celsius = torch.linspace(-1, 1, 100).reshape(-1, 1)
for steps, file in ((20, "first.pt"), (2000, "second.pt")):
    torch.manual_seed(0)
    thermometer = Thermometer()
    optimizer = torch.optim.SGD(thermometer.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(thermometer(celsius), celsius * 1.8 + 32)
        loss.backward()
        optimizer.step()
    torch.save(thermometer.state_dict(), file)

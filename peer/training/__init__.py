"""Training on one device, and checkpoints that other software loads.

trainer.py      one model, one optimizer, one step at a time; tasks/ is what a model is and what its loss is
acceleration.py, inner_optimizer.py, schedule.py, hardware.py    what a step is made of
checkpoint.py   the layout of the Hugging Face Hub; model_card.py is its README
"""

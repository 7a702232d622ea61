"""One module a task: data, model and metric."""

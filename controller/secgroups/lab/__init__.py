"""The lab: controller and engine in one process, for case files, replays and the development stack."""

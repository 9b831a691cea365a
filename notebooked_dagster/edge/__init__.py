"""Runs on Raspberry Pis: from the same Dagster UI, over SSH alone, whatever the link does.

``journal``, ``agent`` and ``recording`` are what runs on the device; they are copied there as they are and know nothing
of this project. The rest runs on the host: ``releases`` brings code to a device, ``launcher`` sends it a run, ``relay``
brings home what the run wrote.
"""

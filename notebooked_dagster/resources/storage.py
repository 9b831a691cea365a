"""Dagster's storage for a project: SQLite files on one machine, PostgreSQL where one environment variable names it.

``dagster.yaml`` cannot say "if"; this class can, so that the same file serves a laptop and a server.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dagster import Field, StringSource
from dagster._config import UserConfigSchema
from dagster._core.storage.base_storage import DagsterStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from notebooked_dagster.errors import ConfigError, MissingPackageError, ProviderError

VARIABLE = "NOTEBOOKED_DATABASE_URL"


class ProjectStorage(DagsterStorage):
    """Chooses the storage; never an object itself. Config: ``base_dir``, where SQLite keeps its files."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Its configuration in ``dagster.yaml``."""
        return {"base_dir": Field(StringSource, is_required=True)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> DagsterStorage:
        """The storage.

        Raises:
            ConfigError: The variable holds no address of a PostgreSQL database.
            MissingPackageError: PostgreSQL is asked for, and its driver is not installed.
            ProviderError: The database cannot be reached.
        """
        url = os.environ.get(VARIABLE, "").strip()
        if not url:
            from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

            return DagsterSqliteStorage.from_local(base_dir=config_value["base_dir"], inst_data=inst_data)
        # `postgres://` is what hosters print; SQLAlchemy takes only the other.
        if url.startswith("postgres://"):
            url = url.replace("postgres://", "postgresql://", 1)
        try:
            address = make_url(url)
        except (ArgumentError, ValueError):
            address = None
        if address is None or address.get_backend_name() != "postgresql":
            # Neither the address nor what was wrong with a part of it: it may hold a password.
            raise ConfigError(
                f"{VARIABLE} is no address of a PostgreSQL database.",
                key=VARIABLE,
                hint="One looks like postgresql://user:password@host:5432/dagster, with %40 for an @ in the password and "
                "%3A for a colon; unset it for SQLite.",
            )
        if address.drivername == "postgresql":
            # What dagster-postgres brings: SQLAlchemy's own choice is another since its release 2.1.
            address = address.set(drivername="postgresql+psycopg2")
        try:
            from dagster_postgres import DagsterPostgresStorage
            from dagster_postgres.utils import DagsterPostgresException
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"{VARIABLE} asks for PostgreSQL, which needs the package {error.name!r}.",
                hint="`pip install 'notebooked-dagster[postgres]'`, or unset the variable for SQLite.",
            ) from error
        try:
            return DagsterPostgresStorage(
                postgres_url=address.render_as_string(hide_password=False),
                should_autocreate_tables=True,
                inst_data=inst_data,
            )
        except DagsterPostgresException as error:
            said = str(getattr(error.__cause__, "orig", None) or "").strip().partition("\n")[0]
            raise ProviderError(
                f"The database {address.database or '?'} at {address.host or 'a socket'}:{address.port or 5432} "
                f"cannot be reached{f': {said}' if said else ''}.",
                hint=f"Start it, or correct {VARIABLE}; unset it for SQLite.",
            ) from error

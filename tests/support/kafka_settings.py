"""Settings that somebody gives topics, as brokers know them: a change is acknowledged before they do."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from support.waiting import wait_for


def give_settings(admin: AdminClient, topic: str, settings: Mapping[str, str]) -> None:
    """Gives a topic settings, and waits until the broker that is asked tells them."""
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin.incremental_alter_configs([resource])[resource].result()
    wait_until_told(admin, topic, settings)


def wait_until_told(admin: AdminClient, topic: str, settings: Mapping[str, str]) -> None:
    """Waits until the broker that is asked tells these settings of a topic."""
    resource = ConfigResource(ResourceType.TOPIC, topic)

    def are_told() -> bool:
        told = admin.describe_configs([resource])[resource].result()
        return all(told[name].value == value for name, value in settings.items())

    wait_for(are_told, what=f"{topic} has {dict(settings)}")

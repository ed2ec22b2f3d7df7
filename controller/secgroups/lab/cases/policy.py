"""Flows as questions to the controller, which answers from policy alone."""

from __future__ import annotations

from secgroups.agent.flow import ICMP, ICMPV6, TCP, UDP
from secgroups.lab.cases.traffic import Conversation
from secgroups.lab.cases.world import FlowQuestion
from secgroups.v1 import ruleset_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

_PROTOCOLS = {TCP: types.PROTOCOL_TCP, UDP: types.PROTOCOL_UDP, ICMP: types.PROTOCOL_ICMP, ICMPV6: types.PROTOCOL_ICMP}


def policy_question(conversation: Conversation) -> FlowQuestion | None:
    """Return the question for a flow's opening packet; None where ExplainFlow knows no such flow.

    It judges every end that is a server, all of one project: not at one server alone, and not across projects.
    """
    opener, responder = conversation.opener, conversation.responder
    projects = {party.server.project for party in (opener, responder) if party.server is not None}
    if conversation.judge is not None or len(projects) != 1:
        return None
    # ICMP on IPv6, ICMPv6 on IPv4: not what the word ICMP means there.
    if conversation.protocol in (ICMP, ICMPV6) and (conversation.protocol == ICMP) != (responder.address.version == 4):
        return None
    return FlowQuestion(
        project=projects.pop(),
        source_server=opener.server.name if opener.server else "",
        source=opener.address,
        destination_server=responder.server.name if responder.server else "",
        destination=responder.address,
        protocol=conversation.protocol,
        port=conversation.responder_port,
        icmp_type=conversation.icmp_type,
        icmp_code=conversation.icmp_code,
    )


def flow_request(question: FlowQuestion, project: str) -> pb.ExplainFlowRequest:
    """Return the question as the API takes it."""
    request = pb.ExplainFlowRequest(
        project=project,
        source=_endpoint(question.source_server, str(question.source)),
        destination=_endpoint(question.destination_server, str(question.destination)),
        protocol=_PROTOCOLS.get(question.protocol, types.PROTOCOL_NUMBER),
        port=question.port,
    )
    if request.protocol == types.PROTOCOL_NUMBER:
        request.protocol_number = question.protocol
    if request.protocol == types.PROTOCOL_ICMP:
        request.icmp_type, request.icmp_code = question.icmp_type, question.icmp_code
    return request


def _endpoint(server_id: str, address: str) -> pb.Endpoint:
    return pb.Endpoint(server_id=server_id, server_address=address) if server_id else pb.Endpoint(address=address)
